// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// scripted answers as a runtime does; internal/e2e/containerd asks real ones.
type scripted struct {
	runtime.UnimplementedRuntimeServiceServer
	info map[string]string
}

func (scripted) Version(context.Context, *runtime.VersionRequest) (*runtime.VersionResponse, error) {
	return &runtime.VersionResponse{RuntimeName: "named", RuntimeVersion: "1.2"}, nil
}

func (s scripted) Status(_ context.Context, r *runtime.StatusRequest) (*runtime.StatusResponse, error) {
	if !r.Verbose {
		return &runtime.StatusResponse{}, nil
	}
	return &runtime.StatusResponse{Info: s.info}, nil
}

func serve(t *testing.T, info map[string]string) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "cri.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	runtime.RegisterRuntimeServiceServer(s, scripted{info: info})
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return socket
}

func TestAskReadsWhatContainerdSays(t *testing.T) {
	socket := serve(t, map[string]string{"cniconfig": `{"PluginDirs": ["/a/bin", "/b"], "PluginConfDir": "/a/net.d",
		"Networks": [{"Config": {"Plugins": [{"Network": {"type": "loopback"}}]}, "IFName": "lo"},
		{"Config": {"Plugins": [{"Network": {"type": "ptp"}}, {"Network": {"type": "portmap"}}]}, "IFName": "eth0"}]}`})
	got, err := Ask(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	want := Info{Socket: socket, Name: "named", Version: "1.2", ConfDir: "/a/net.d", BinDirs: []string{"/a/bin", "/b"}, Plugins: []string{"ptp", "portmap"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestAskTellsARuntimeThatDoesNotKnow(t *testing.T) {
	for name, text := range map[string]string{
		"nothing": "", "null": "null", "no JSON": "{", "no folders": `{"PluginDirs": [], "PluginConfDir": "/a"}`, "relative": `{"PluginDirs": ["/b"], "PluginConfDir": "a"}`,
	} {
		got, err := Ask(t.Context(), serve(t, map[string]string{"cniconfig": text}))
		if !errors.Is(err, ErrNotTold) || got.Name != "named" || got.ConfDir != "" {
			t.Errorf("%s: got %+v, %v, want the name and %v", name, got, err, ErrNotTold)
		}
	}
}

func TestAskFailsWithoutRuntime(t *testing.T) {
	_, err := Ask(t.Context(), filepath.Join(t.TempDir(), "none.sock"))
	if err == nil || errors.Is(err, ErrNotTold) {
		t.Errorf("got %v, want that nobody answers", err)
	}
}

func (scripted) ListPodSandbox(context.Context, *runtime.ListPodSandboxRequest) (*runtime.ListPodSandboxResponse, error) {
	var all runtime.ListPodSandboxResponse
	for _, s := range []struct {
		id    string
		state runtime.PodSandboxState
	}{
		{"path", runtime.PodSandboxState_SANDBOX_READY}, {"pid", runtime.PodSandboxState_SANDBOX_READY}, {"garbled", runtime.PodSandboxState_SANDBOX_READY},
		{"gone", runtime.PodSandboxState_SANDBOX_READY}, {"other", runtime.PodSandboxState_SANDBOX_READY}, {"ended", runtime.PodSandboxState_SANDBOX_NOTREADY},
	} {
		all.Items = append(all.Items, &runtime.PodSandbox{Id: s.id, State: s.state, Metadata: &runtime.PodSandboxMetadata{Uid: "u-" + s.id, Namespace: "shop", Name: s.id}})
	}
	return &all, nil
}

func (scripted) PodSandboxStatus(_ context.Context, r *runtime.PodSandboxStatusRequest) (*runtime.PodSandboxStatusResponse, error) {
	text := map[string]string{
		"path":    `{"pid": 7, "runtimeSpec": {"linux": {"namespaces": [{"type": "pid"}, {"type": "network", "path": "/var/run/netns/cni-1"}]}}}`,
		"pid":     `{"pid": 8, "runtimeSpec": {"linux": {"namespaces": [{"type": "network"}]}}}`,
		"garbled": "{",
	}[r.PodSandboxId]
	if text == "" {
		return nil, errors.New("no such sandbox")
	}
	return &runtime.PodSandboxStatusResponse{Info: map[string]string{"info": text}}, nil
}

func TestSandboxesTellWhereTheirNamespacesAre(t *testing.T) {
	got, err := Sandboxes(t.Context(), serve(t, nil), func(uid string) bool { return uid != "u-other" })
	if err != nil {
		t.Fatal(err)
	}
	want := []Sandbox{
		{ID: "path", Namespace: "shop", Name: "path", UID: "u-path", Netns: "/var/run/netns/cni-1", PID: 7},
		{ID: "pid", Namespace: "shop", Name: "pid", UID: "u-pid", PID: 8},
		{ID: "garbled", Namespace: "shop", Name: "garbled", UID: "u-garbled"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, err := Sandboxes(t.Context(), filepath.Join(t.TempDir(), "none.sock"), func(string) bool { return true }); err == nil {
		t.Error("no error although nobody answers")
	}
}
