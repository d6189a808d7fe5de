// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

var allHooks = HostConfig{Flows: true, Bind: true, Probe: true}

func hooksOf(s HostStatus) map[string]HookStatus {
	return map[string]HookStatus{"probe": s.Probe, "bind": s.Bind, "flows": s.Flows}
}

func (w *world) hostPrograms(t *testing.T) (links map[string]link.ID, progs map[string]ebpf.ProgramID) {
	t.Helper()
	links, progs = map[string]link.ID{}, map[string]ebpf.ProgramID{}
	for _, pin := range hostPins {
		l, err := link.LoadPinnedLink(w.hostPin(pin), nil)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		info, err := l.Info()
		if err != nil {
			t.Fatal(err)
		}
		links[pin], progs[pin] = info.ID, info.Program
		_ = l.Close()
	}
	return links, progs
}

func TestAttachHostAgainReplacesInPlace(t *testing.T) {
	w := newWorld(t)
	for name, h := range hooksOf(w.attachHost(t, allHooks)) {
		if !h.Attached || h.Problem != "" || h.Cgroup == "" {
			t.Errorf("%s: got %+v", name, h)
		}
	}
	links, progs := w.hostPrograms(t)
	if len(links) != 4 {
		t.Errorf("links: got %v, want four", links)
	}
	w.attachHost(t, allHooks)
	linksNow, progsNow := w.hostPrograms(t)
	for pin := range links {
		if links[pin] != linksNow[pin] || progs[pin] == progsNow[pin] {
			t.Errorf("%s: link %d became %d, program %d became %d", pin, links[pin], linksNow[pin], progs[pin], progsNow[pin])
		}
	}
	other, err := OpenNode(w.root)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	status, err := other.HostStatus()
	if err != nil {
		t.Fatal(err)
	}
	for name, h := range hooksOf(status) {
		if !h.Attached || h.Problem != "" {
			t.Errorf("%s, asked by another process: got %+v", name, h)
		}
	}
	// Less is wanted now.
	s := w.attachHost(t, HostConfig{Flows: true})
	if s.Probe.Attached || s.Bind.Attached || !s.Flows.Attached {
		t.Errorf("got %+v, want flows only", s)
	}
	if links, _ := w.hostPrograms(t); len(links) != 1 || links[flowsLink] == 0 {
		t.Errorf("links: got %v, want flows only", links)
	}
	if err := w.DetachHost(); err != nil {
		t.Fatal(err)
	}
	if err := w.DetachHost(); err != nil {
		t.Errorf("again: %v", err)
	}
	if links, _ := w.hostPrograms(t); len(links) != 0 {
		t.Errorf("links: got %v, want none", links)
	}
	if s := w.hostStatus(t); s != (HostStatus{}) {
		t.Errorf("status: got %+v, want nothing", s)
	}
}

// TestAttachedButNotEffective: the kernel attaches to a cgroup that holds nobody with success.
func TestAttachedButNotEffective(t *testing.T) {
	w := newWorld(t)
	cfg := allHooks
	cfg.Cgroup = mustCgroup(t)
	s := w.attachHost(t, cfg)
	for name, h := range map[string]HookStatus{"bind": s.Bind, "flows": s.Flows} {
		if !h.Attached || !strings.Contains(h.Problem, "not effective") || !strings.Contains(h.Problem, cfg.Cgroup) {
			t.Errorf("%s: got %+v", name, h)
		}
	}
	if s.Probe.Kind != HookHostEnd || !strings.Contains(s.Probe.Problem, "not effective") {
		t.Errorf("probe: got %+v, want the fallback", s.Probe)
	}
	if got := w.hostStatus(t); got != s {
		t.Errorf("status: got %+v, want %+v", got, s)
	}
}

// TestHostMoveOfADeadProcess: the link that a process leaves when it dies while it moves probe trusts nobody any more.
func TestHostMoveOfADeadProcess(t *testing.T) {
	w := newWorld(t)
	pod := w.host.Pod(t, "pod")
	w.enrol(t, pod, withAddresses(pod))
	addr := netip.AddrPortFrom(pod.Addr4, 80)
	pod.Echo(t, "app", addr.String())
	w.attachHost(t, HostConfig{Probe: true, ProbeCgroup: cgroupRoot(t)})
	if err := os.Rename(w.hostPin(probeLink), w.hostPin(movingLink)); err != nil {
		t.Fatal(err)
	}
	if got := w.answerIn(t, "", addr); got != "app" {
		t.Fatalf("by the link that was left: got %q, want app", got)
	}
	kubelet := mustCgroup(t)
	wantHook(t, w.attachHost(t, HostConfig{Probe: true, ProbeCgroup: kubelet}).Probe)
	if links, _ := w.hostPrograms(t); len(links) != 1 || links[probeLink] == 0 {
		t.Errorf("links: got %v, want probe only", links)
	}
	if got, want := w.answerIn(t, "", addr), "inbound@"+addr.String(); got != want {
		t.Errorf("outside: got %q, want %q", got, want)
	}
	if got := w.answerIn(t, kubelet, addr); got != "app" {
		t.Errorf("inside: got %q, want app", got)
	}
}

func TestWithoutCgroup2TheStatusSaysWhy(t *testing.T) {
	w := newWorld(t)
	cfg := allHooks
	cfg.Cgroup = t.TempDir()
	s := w.attachHost(t, cfg)
	for name, h := range hooksOf(s) {
		if !strings.Contains(h.Problem, "is not a cgroup2 folder") || h.Attached != (name == "probe") {
			t.Errorf("%s: got %+v", name, h)
		}
	}
	if links, _ := w.hostPrograms(t); len(links) != 0 {
		t.Errorf("links: got %v, want none", links)
	}
	if _, err := w.AttachHost(HostConfig{FlowInterval: -1}); err == nil {
		t.Error("a negative interval was taken")
	}
}

// TestNodeOfAnEarlierRelease: one whose agent made no maps for these programs can be used as before.
func TestNodeOfAnEarlierRelease(t *testing.T) {
	w := newWorld(t)
	for name := range w.Node.host.byName() {
		if err := os.Remove(w.hostPin(name)); err != nil {
			t.Fatal(err)
		}
	}
	old, err := OpenNode(w.root)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = old.Close() }()
	if _, err := old.AttachHost(allHooks); !errors.Is(err, ErrNotLoaded) {
		t.Errorf("AttachHost: got %v, want %v", err, ErrNotLoaded)
	}
	if _, err := old.Flows(); !errors.Is(err, ErrNotLoaded) {
		t.Errorf("Flows: got %v, want %v", err, ErrNotLoaded)
	}
	if s, err := old.HostStatus(); err != nil || s != (HostStatus{}) {
		t.Errorf("HostStatus: got %+v, %v", s, err)
	}
	pod := w.host.Pod(t, "pod")
	cfg := w.config(pod)
	cfg.Addresses = []netip.Addr{pod.Addr4}
	w.host.MustDo(t, func() error {
		p, err := old.AttachPod(cfg)
		if err == nil {
			err = p.Close()
		}
		return errors.Join(err, old.DetachPod(cfg.ID))
	})
}

// TestOtherOwnersProgramsAreCalled: sockops of others before and after ours see what they asked for.
func TestOtherOwnersProgramsAreCalled(t *testing.T) {
	w := newWorld(t)
	pod := w.host.Pod(t, "pod")
	w.enrol(t, pod, withAddresses(pod))
	var cookie uint64
	w.host.MustDo(t, func() (err error) {
		cookie, err = currentNetnsCookie()
		return err
	})
	before := otherOwner(t, cookie, flagRetransCB)
	w.attachHost(t, HostConfig{Probe: true, Flows: true, ProbeCgroup: cgroupRoot(t)})
	after := otherOwner(t, cookie, flagRTTCB)
	addr := netip.AddrPortFrom(pod.Addr4, 80)
	pod.Echo(t, "app", addr.String())
	wantAnswer(t, w.host.NS, addr, "app", netip.Addr{})
	for want, m := range map[uint32]*ebpf.Map{flagRetransCB | flagStateCB: before, flagRTTCB | flagStateCB: after} {
		testutil.Eventually(t, 20*time.Second, func() error {
			var flags uint32
			if err := m.Lookup(uint32(0), &flags); err != nil {
				return err
			}
			if flags&want != want {
				return fmt.Errorf("callbacks at close: got %#x, want at least %#x", flags, want)
			}
			return nil
		})
	}
}

// Of linux/bpf.h: enum of socket operations, offsets in struct bpf_sock_ops, flags of callbacks.
const (
	opConnect, opState      = 3, 10
	offsetOp, offsetCBFlags = 0, 84
	flagRetransCB           = 1 << 1
	flagStateCB             = 1 << 2
	flagRTTCB               = 1 << 3
)

// otherOwner attaches a program to the cgroup2 root that asks for callbacks when a socket of a namespace connects, and
// leaves the callbacks that the socket has when its state changes in the map that is returned.
func otherOwner(t *testing.T, netns uint64, flags int32) *ebpf.Map {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SockOps, AttachType: ebpf.AttachCGroupSockOps, License: "GPL",
		Instructions: asm.Instructions{
			asm.Mov.Reg(asm.R6, asm.R1),
			asm.FnGetNetnsCookie.Call(),
			asm.LoadImm(asm.R1, int64(netns), asm.DWord),
			asm.JNE.Reg(asm.R0, asm.R1, "out"),
			asm.LoadMem(asm.R7, asm.R6, offsetCBFlags, asm.Word),
			asm.LoadMem(asm.R1, asm.R6, offsetOp, asm.Word),
			asm.JEq.Imm(asm.R1, opState, "state"),
			asm.JNE.Imm(asm.R1, opConnect, "out"),
			asm.Mov.Reg(asm.R2, asm.R7),
			asm.Or.Imm(asm.R2, flags),
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.FnSockOpsCbFlagsSet.Call(),
			asm.Ja.Label("out"),
			asm.StoreImm(asm.RFP, -8, 0, asm.Word).WithSymbol("state"),
			asm.StoreMem(asm.RFP, -4, asm.R7, asm.Word),
			asm.LoadMapPtr(asm.R1, m.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -8),
			asm.Mov.Reg(asm.R3, asm.RFP),
			asm.Add.Imm(asm.R3, -4),
			asm.Mov.Imm(asm.R4, 0),
			asm.FnMapUpdateElem.Call(),
			asm.Mov.Imm(asm.R0, 1).WithSymbol("out"),
			asm.Return(),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = prog.Close() })
	l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroupRoot(t), Attach: ebpf.AttachCGroupSockOps, Program: prog})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return m
}

func TestFlowNames(t *testing.T) {
	got := fmt.Sprint(FlowOpen, FlowUpdate, FlowClose, FlowKind(9), FlowUnknown, FlowCaptured, FlowPassthrough,
		FlowDelivery, FlowProbe, FlowLocal, FlowPath(9))
	if want := "open update close kind-9 unknown captured passthrough delivery probe local path-9"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := []string{tcpState(1), tcpState(7), tcpState(11), tcpState(0), tcpState(99)}; !slices.Equal(got, []string{"established", "close", "closing", "state-0", "state-99"}) {
		t.Errorf("got %v", got)
	}
	if err := new(FlowEvent).decode(make([]byte, 8)); err == nil {
		t.Error("a short event was decoded")
	}
}
