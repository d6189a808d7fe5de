// SPDX-License-Identifier: Apache-2.0

package running

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// runtimeOf has sandboxes of the pods with these uids; internal/e2e/containerd asks real runtimes.
type runtimeOf struct {
	runtime.UnimplementedRuntimeServiceServer
	uids []string
}

func (r runtimeOf) ListPodSandbox(context.Context, *runtime.ListPodSandboxRequest) (*runtime.ListPodSandboxResponse, error) {
	list := &runtime.ListPodSandboxResponse{}
	for _, uid := range r.uids {
		list.Items = append(list.Items, &runtime.PodSandbox{
			Id: "sandbox-" + uid, Metadata: &runtime.PodSandboxMetadata{Uid: uid}, State: runtime.PodSandboxState_SANDBOX_READY,
		})
	}
	return list, nil
}

func (r runtimeOf) PodSandboxStatus(context.Context, *runtime.PodSandboxStatusRequest) (*runtime.PodSandboxStatusResponse, error) {
	return &runtime.PodSandboxStatusResponse{Info: map[string]string{"info": `{"runtimeSpec": {"linux": {"namespaces": [{"type": "network", "path": "/proc/self/ns/net"}]}}}`}}, nil
}

func (r runtimeOf) serve(t *testing.T) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "cri.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	runtime.RegisterRuntimeServiceServer(s, r)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return socket
}

// TestNothingRunsOfAPod: that is told from a pod that is in doubt, and from not knowing.
func TestNothingRunsOfAPod(t *testing.T) {
	const uid = "8c0e5b9a-4a4f-4f0c-9d58-0a6b1f6f3c11"
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: uid}}
	for name, tt := range map[string]struct {
		finder Finder
		absent bool
	}{
		"the runtime has others":         {Finder{Sockets: []string{runtimeOf{uids: []string{"another"}}.serve(t)}}, true},
		"the node's namespace":           {Finder{Sockets: []string{runtimeOf{uids: []string{uid}}.serve(t)}}, false},
		"no runtime":                     {Finder{}, false},
		"the runtime does not answer":    {Finder{Sockets: []string{filepath.Join(t.TempDir(), "none.sock")}}, false},
		"processes cannot be looked for": {Finder{Sockets: []string{runtimeOf{}.serve(t)}, Proc: t.TempDir() + "/none"}, false},
	} {
		got := tt.finder.Find(t.Context(), []*corev1.Pod{pod})
		if len(got) != 1 || got[0].Err == nil || errors.Is(got[0].Err, ErrAbsent) != tt.absent {
			t.Errorf("%s: got %+v, want absent %v", name, got, tt.absent)
		}
	}
}
