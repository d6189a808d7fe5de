// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"net"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-mesh/sluice/installer/running"
	"github.com/sluice-mesh/sluice/internal/lab"
	"github.com/sluice-mesh/sluice/internal/netns"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

// asInAPI is the pod as the API tells of it.
func (p *pod) asInAPI() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.config.Metadata.Namespace, Name: p.name, UID: types.UID(p.config.Metadata.Uid)},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: p.addr4.String(), PodIPs: []corev1.PodIP{{IP: p.addr4.String()}, {IP: p.addr6.String()}},
		},
	}
}

// find looks for pods from the node, as its agent does.
func (n *node) find(f *running.Finder, pods ...*corev1.Pod) (all []running.Found) {
	n.t.Helper()
	n.must(lab.In(n.NS, func() error {
		all = f.Find(context.Background(), pods)
		return nil
	}))
	return all
}

// TestPodsThatStartedBeforeTheAgentAreFound asks a real runtime, of whose pods no ADD of ours has told.
func TestPodsThatStartedBeforeTheAgentAreFound(t *testing.T) {
	each(t, func(t *testing.T, r release) {
		n := newNode(t, r)
		a, b := n.mustRun("a", "shop"), n.mustRun("b", "shop")
		f := &running.Finder{Sockets: []string{n.socket()}, Proc: t.TempDir()} // no process is seen
		found := n.find(f, a.asInAPI(), b.asInAPI())
		for i, p := range []*pod{a, b} {
			if found[i].Err != nil {
				t.Fatalf("%s: %v", p.name, found[i].Err)
			}
			n.wantSandbox(found[i].Sandbox, p)
		}

		stranger := a.asInAPI()
		stranger.Status.PodIPs[1].IP = b.addr6.String()
		gone := b.asInAPI()
		n.must(n.removePod(b))
		for what, p := range map[string]*corev1.Pod{"a pod of other addresses": stranger, "a pod that is gone": gone} {
			if got := n.find(f, p)[0]; got.Err == nil {
				t.Errorf("%s: found %+v", what, got.Sandbox)
			}
		}
	})
}

func (n *node) wantSandbox(got nodeapi.Pod, p *pod) {
	n.t.Helper()
	if got.ContainerID != p.sandbox || got.UID != p.config.Metadata.Uid || got.Namespace != "shop" || got.Name != p.name {
		n.t.Errorf("%s: got %+v, want sandbox %s", p.name, got, p.sandbox)
	}
	var ids [2]netns.ID
	for i, path := range []string{got.Netns, p.Path} {
		ns, err := netns.Open(path)
		n.must(err)
		defer ns.Close()
		ids[i], err = ns.ID()
		n.must(err)
	}
	if ids[0] != ids[1] {
		n.t.Errorf("%s: got netns %q, want %q", p.name, got.Netns, p.Path)
	}
	if len(got.Interfaces) != 1 || got.Interfaces[0].Name != "eth0" || len(got.Interfaces[0].Addresses) != 2 {
		n.t.Fatalf("%s: got interfaces %+v, want eth0 with two addresses", p.name, got.Interfaces)
	}
	n.must(lab.In(n.NS, func() error {
		_, err := net.InterfaceByIndex(got.Interfaces[0].HostIfindex)
		return err
	}))
}
