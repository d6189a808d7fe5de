// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"

	"github.com/sluice-mesh/sluice/internal/netns"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// trace is everything that attaching changes in a pod's namespace and on its host end.
func (w *world) trace(t *testing.T, pod *testutil.Pod) string {
	t.Helper()
	var b strings.Builder
	for _, args := range []string{"-4 rule", "-6 rule", "-4 route show table all", "-6 route show table all"} {
		fmt.Fprintf(&b, "ip %s:\n%s", args, pod.Run(t, "ip", strings.Fields(args)...))
	}
	query := func(name string, target int, attach ebpf.AttachType) {
		r, err := link.QueryPrograms(link.QueryOptions{Target: target, Attach: attach})
		if err != nil {
			t.Errorf("query %s: %v", name, err)
			return
		}
		fmt.Fprintf(&b, "%s: %d programs", name, len(r.Programs))
		if attach != ebpf.AttachSkLookup { // qdiscs stay
			filters, err := listFilters(hook{ifindex: target}.device(), hook{attach: attach}.parent())
			if err != nil {
				t.Errorf("query %s: %v", name, err)
			}
			fmt.Fprintf(&b, ", %d filters", len(filters))
		}
		b.WriteByte('\n')
	}
	pod.MustDo(t, func() error {
		open, err := loopbackIsOpen()
		fmt.Fprintf(&b, "accept_local: %v\n", open)
		ns, err2 := netns.Current()
		if err2 != nil {
			return err2
		}
		defer func() { _ = ns.Close() }()
		query("dispatch", ns.FD(), ebpf.AttachSkLookup)
		query("local", loopbackIfindex, ebpf.AttachTCXEgress)
		return err
	})
	eth0 := pod.Ifindex(t, "eth0")
	pod.MustDo(t, func() error { query("capture", eth0, ebpf.AttachTCXEgress); return nil })
	w.host.MustDo(t, func() error { query("guard", pod.HostIfindex, ebpf.AttachTCXIngress); return nil })
	return b.String()
}

// wantNoPins checks that nothing of any pod is left below the root.
func (w *world) wantNoPins(t *testing.T) {
	t.Helper()
	for _, dir := range []string{podsDir, workDir} {
		if ids, err := w.ids(dir); err != nil || len(ids) > 0 {
			t.Errorf("%s: got %v, %v, want none", dir, ids, err)
		}
	}
}

func TestDetachLeavesNoTrace(t *testing.T) {
	w := newWorld(t)
	pod, legacy := w.host.Pod(t, "pod"), w.host.Pod(t, "legacy")
	pod.Echo(t, "app", netip.AddrPortFrom(pod.Addr4, 80).String())
	before := w.trace(t, pod)
	p := w.attach(t, pod)
	if w.trace(t, pod) == before {
		t.Error("attaching left no trace: this test sees nothing")
	}
	for range 2 {
		if err := w.DetachPod(pod.Name); err != nil {
			t.Error(err)
		}
	}
	if diff := cmp.Diff(before, w.trace(t, pod)); diff != "" {
		t.Errorf("after detaching (-before +after):\n%s", diff)
	}
	w.wantNoPins(t)
	wantAnswer(t, legacy.NS, netip.AddrPortFrom(pod.Addr4, 80), "app", legacy.Addr4)
	if _, err := w.Pod(pod.Name); !errors.Is(err, ErrNotAttached) {
		t.Errorf("Pod: got %v, want %v", err, ErrNotAttached)
	}
	if err := w.check(p); err == nil {
		t.Error("Check of a detached pod: got nil")
	}
}

func TestDetachKeepsWhatWasThere(t *testing.T) {
	w := newWorld(t)
	pod := w.host.Pod(t, "pod")
	pod.Sysctl(t, "net.ipv4.conf.lo.accept_local", "1")
	before := w.trace(t, pod)
	w.attach(t, pod)
	w.attach(t, pod)
	if err := w.DetachPod(pod.Name); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(before, w.trace(t, pod)); diff != "" {
		t.Errorf("after detaching (-before +after):\n%s", diff)
	}
}

func TestFailedAttachLeavesNoTrace(t *testing.T) {
	w := newWorld(t)
	pod := w.host.Pod(t, "pod")
	before := w.trace(t, pod)
	_, err := w.tryAttach(pod, func(c *PodConfig) { c.HostIfindexes = []int{pod.HostIfindex, 1 << 20} }) // the last step
	if err == nil || !strings.Contains(err.Error(), "guard_1048576") {
		t.Errorf("got %v, want an error that names the guard's interface", err)
	}
	if diff := cmp.Diff(before, w.trace(t, pod)); diff != "" {
		t.Errorf("(-before +after):\n%s", diff)
	}
	w.wantNoPins(t)
}

func TestDetachSucceedsWithoutNetns(t *testing.T) {
	w := newWorld(t)
	pod := w.host.Pod(t, "pod")
	w.attach(t, pod)
	pod.Delete(t)
	if err := w.DetachPod(pod.Name); err != nil {
		t.Error(err)
	}
	w.wantNoPins(t)
}
