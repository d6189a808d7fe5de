// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"maps"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"

	"github.com/sluice-mesh/sluice/internal/netns"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// neighbours are somebody else's programs on our hooks. Each counts how often it runs, and has no opinion.
type neighbours struct {
	w      *world
	pod    *testutil.Pod
	counts map[string]*ebpf.Map
	ids    map[string]ebpf.ProgramID
}

// counting returns a program that adds 1 to its counter and returns act.
func (n *neighbours) counting(t *testing.T, name string, kind ebpf.ProgramType, attach ebpf.AttachType, act int32) *ebpf.Program {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: kind, AttachType: attach, License: "MIT",
		Instructions: asm.Instructions{
			asm.LoadMapValue(asm.R1, m.FD(), 0),
			asm.Mov.Imm(asm.R2, 1),
			asm.StoreXAdd(asm.R1, asm.R2, asm.DWord),
			asm.Mov.Imm(asm.R0, act),
			asm.Return(),
		},
	})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() { _ = prog.Close() })
	n.counts[name], n.ids[name] = m, mustID(t, prog)
	return prog
}

// hooks are the places of our programs, with the namespaces that they are in.
func (n *neighbours) each(t *testing.T, do func(name string, h hook) error) {
	t.Helper()
	eth0 := n.pod.Ifindex(t, "eth0")
	for _, each := range []struct {
		name string
		ns   *testutil.NS
		hook hook
	}{
		{"capture", n.pod.NS, hook{ifindex: eth0, attach: ebpf.AttachTCXEgress}},
		{"local", n.pod.NS, hook{ifindex: loopbackIfindex, attach: ebpf.AttachTCXEgress}},
		{"guard", n.w.host.NS, hook{ifindex: n.pod.HostIfindex, attach: ebpf.AttachTCXIngress}},
	} {
		each.ns.MustDo(t, func() error { return do(each.name, each.hook) })
	}
}

// settle attaches programs that the kernel puts before and after those that are there.
func (n *neighbours) settle(t *testing.T, when string) {
	t.Helper()
	n.each(t, func(name string, h hook) error {
		for place, anchor := range map[string]link.Anchor{"head": link.Head(), "tail": link.Tail()} {
			prog := n.counting(t, fmt.Sprintf("%s %s tcx %s", when, name, place), ebpf.SchedCLS, h.attach, -1)
			l, err := link.AttachTCX(link.TCXOptions{Interface: h.ifindex, Program: prog, Attach: h.attach, Anchor: anchor})
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = l.Close() })
		}
		for _, priority := range []uint16{FilterPriority, 50} {
			prog := n.counting(t, fmt.Sprintf("%s %s filter %d", when, name, priority), ebpf.SchedCLS, ebpf.AttachNone, -1)
			if err := addFilter(h, priority, prog); err != nil {
				return err
			}
		}
		return nil
	})
	n.pod.MustDo(t, func() error {
		ns, err := netns.Current()
		if err != nil {
			return err
		}
		defer func() { _ = ns.Close() }()
		l, err := link.AttachNetNs(ns.FD(), n.counting(t, when+" dispatch", ebpf.SkLookup, ebpf.AttachSkLookup, skPass))
		if err == nil {
			t.Cleanup(func() { _ = l.Close() })
		}
		return err
	})
}

func (n *neighbours) read(t *testing.T) map[string]uint64 {
	t.Helper()
	got := map[string]uint64{}
	for name, m := range n.counts {
		var value uint64
		if err := m.Lookup(uint32(0), &value); err != nil {
			t.Fatal(err)
		}
		got[name] = value
	}
	return got
}

// wantRunning lets traffic pass that ours has no objection to, and checks that all others see it too.
func (n *neighbours) wantRunning(t *testing.T, after string, to ...netip.AddrPort) {
	t.Helper()
	before := n.read(t)
	for _, addr := range to {
		if _, err := n.pod.AskFrom(addr); err != nil {
			t.Errorf("after %s: ask %v: %v", after, addr, err)
		}
	}
	for name, count := range n.read(t) {
		if count == before[name] {
			t.Errorf("after %s: %s does not run any more", after, name)
		}
	}
}

// present are the ids of all programs that are attached at our hooks.
func (n *neighbours) present(t *testing.T) map[ebpf.ProgramID]bool {
	t.Helper()
	ids := map[ebpf.ProgramID]bool{}
	n.each(t, func(_ string, h hook) error {
		r, err := link.QueryPrograms(link.QueryOptions{Target: h.ifindex, Attach: h.attach})
		if err != nil {
			return err
		}
		for _, p := range r.Programs {
			ids[p.ID] = true
		}
		filters, err := h.bpfFilters()
		for _, f := range filters {
			ids[ebpf.ProgramID(f.Id)] = true
		}
		return err
	})
	return ids
}

// TestOthersProgramsKeepRunning: what other owners have on our hooks stays as it is and runs, whatever we do.
func TestOthersProgramsKeepRunning(t *testing.T) {
	w := newWorld(t)
	pod, outside := w.host.Pod(t, "pod"), w.host.Pod(t, "outside")
	w.mesh(t)
	own, stranger := netip.AddrPortFrom(pod.Addr4, 80), netip.AddrPortFrom(outside.Addr4, 80)
	pod.Echo(t, "own", own.String())
	outside.Echo(t, "outside", stranger.String())
	n := &neighbours{w: w, pod: pod, counts: map[string]*ebpf.Map{}, ids: map[string]ebpf.ProgramID{}}
	n.settle(t, "early")
	ours := func() int { return len(n.present(t)) - (len(n.ids) - countDispatch(n.ids)) }
	if got := ours(); got != 0 {
		t.Fatalf("before attaching: got %d programs of ours, want 0", got)
	}
	n.wantRunning(t, "settling", own, stranger)
	w.enrol(t, pod)
	n.wantRunning(t, "attaching", own, stranger)
	n.settle(t, "late")
	for range 3 {
		w.attach(t, pod)
	}
	n.wantRunning(t, "replacing", own, stranger)
	if got := ours(); got != 3 {
		t.Errorf("programs of ours: got %d, want 3", got)
	}
	if err := w.DetachPod(pod.Name); err != nil {
		t.Error(err)
	}
	n.wantRunning(t, "detaching", own, stranger)
	want := map[ebpf.ProgramID]bool{}
	for name, id := range maps.All(n.ids) {
		if !isDispatchName(name) {
			want[id] = true
		}
	}
	if diff := cmp.Diff(want, n.present(t)); diff != "" {
		t.Errorf("attached after detaching (-want +got):\n%s", diff)
	}
}

func isDispatchName(name string) bool { return name == "early dispatch" || name == "late dispatch" }

func countDispatch(ids map[string]ebpf.ProgramID) (n int) {
	for name := range ids {
		if isDispatchName(name) {
			n++
		}
	}
	return n
}
