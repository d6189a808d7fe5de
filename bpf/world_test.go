// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// world is a node with pods, some of them attached:
//
//	client ──┐                    each pod: eth0, 10.77.0.N and fd77::N
//	server ──┼── node (forwards)
//	legacy ──┘
type world struct {
	*Node
	host *testutil.Node
}

func newWorld(t *testing.T) *world {
	t.Helper()
	testutil.RequireRoot(t)
	testutil.RequireKernel(t, "6.6", "tcx")
	n, err := LoadNode(filepath.Join(testutil.BPFFS(t), "sluice", "v1"))
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() { _ = n.Close() })
	return &world{Node: n, host: testutil.NewNode(t)}
}

// mesh makes the set of destinations complete, with the addresses of these pods in it.
func (w *world) mesh(t *testing.T, pods ...*testutil.Pod) {
	t.Helper()
	d := w.Destinations()
	for _, p := range pods {
		if err := d.Add(p.Addr4, p.Addr6); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.SetComplete(true); err != nil {
		t.Fatal(err)
	}
}

// attach is AttachPod on the node's thread, with guard.
func (w *world) attach(t *testing.T, pod *testutil.Pod, edit ...func(*PodConfig)) *Pod {
	t.Helper()
	p, err := w.tryAttach(pod, edit...)
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func (w *world) tryAttach(pod *testutil.Pod, edit ...func(*PodConfig)) (p *Pod, err error) {
	cfg := w.config(pod)
	for _, e := range edit {
		e(&cfg)
	}
	err = w.host.Do(func() (err error) {
		p, err = w.AttachPod(cfg)
		return err
	})
	return p, err
}

func (w *world) config(pod *testutil.Pod) PodConfig {
	return PodConfig{
		ID: pod.Name, UID: "uid-" + pod.Name, Namespace: "default", Name: pod.Name, ContainerID: "c-" + pod.Name,
		NetnsPath: pod.Path, Interfaces: []string{"eth0"}, HostIfindexes: []int{pod.HostIfindex},
	}
}

// check is Check on the node's thread.
func (w *world) check(p *Pod) error { return w.host.Do(p.Check) }

// enrolled is an attached pod with a proxy: what ztunnel is to it, without mTLS.
type enrolled struct {
	*testutil.Pod
	bpf   *Pod
	proxy *proxy
}

func (w *world) enrol(t *testing.T, pod *testutil.Pod, edit ...func(*PodConfig)) *enrolled {
	t.Helper()
	x := newProxy(t, w.Node, pod)
	with := func(c *PodConfig) { c.Listeners = x.fds(t) }
	return &enrolled{Pod: pod, bpf: w.attach(t, pod, append([]func(*PodConfig){with}, edit...)...), proxy: x}
}

// wantVerdict waits until the pod has counted a verdict at least n times.
func (e *enrolled) wantVerdict(t *testing.T, v Verdict, n uint64) {
	t.Helper()
	testutil.Eventually(t, 20*time.Second, func() error {
		got, err := e.bpf.Verdicts()
		if err == nil && got[v] < n {
			err = fmt.Errorf("%v: got %d, want at least %d; all: %v", v, got[v], n, got)
		}
		return err
	})
}

// count is a pod's counter of a verdict as it is now.
func (e *enrolled) count(t *testing.T, v Verdict) uint64 {
	t.Helper()
	got, err := e.bpf.Verdicts()
	if err != nil {
		t.Fatal(err)
	}
	return got[v]
}

// wantAnswer asks addr from inside a pod and checks who answers, and from which address it saw the pod.
func wantAnswer(t *testing.T, from *testutil.NS, addr netip.AddrPort, name string, source netip.Addr) {
	t.Helper()
	got, err := from.AskFrom(addr)
	if err != nil {
		t.Errorf("ask %v: %v", addr, err)
		return
	}
	if got.Name != name || source.IsValid() && got.From.Addr() != source {
		t.Errorf("ask %v: got %q from %v, want %q from %v", addr, got.Name, got.From.Addr(), name, source)
	}
}

// eachFamily runs a subtest for IPv4 and one for IPv6.
func eachFamily(t *testing.T, test func(t *testing.T, family string)) {
	for _, family := range []string{"4", "6"} {
		t.Run("IPv"+family, func(t *testing.T) { test(t, family) })
	}
}
