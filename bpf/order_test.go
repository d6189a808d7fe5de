// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestOthersProgramsDoNotHidePackets: a program that says "let it pass" ends the list. Ours must come before those that
// were there first.
func TestOthersProgramsDoNotHidePackets(t *testing.T) {
	w := newWorld(t)
	pod, server := w.host.Pod(t, "client"), w.host.Pod(t, "server")
	w.mesh(t, server)
	wire := sniff(t, w.host.NS, server.HostIf)
	eth0 := pod.Ifindex(t, "eth0")
	for _, ifindex := range []int{eth0, loopbackIfindex} {
		pod.MustDo(t, func() error { return passAll(t, ifindex, ebpf.AttachTCXEgress) })
	}
	w.host.MustDo(t, func() error { return passAll(t, pod.HostIfindex, ebpf.AttachTCXIngress) })
	client := w.enrol(t, pod)
	eachFamily(t, func(t *testing.T, family string) {
		addr := netip.AddrPortFrom(server.Addr(family), 80)
		server.Echo(t, "server", addr.String())
		wantAnswer(t, client.NS, addr, "outbound@"+addr.String(), client.Addr(family))
	})
	wire.wantNone(t, pod, server)
}

// passAll attaches somebody else's program, which lets everything pass.
func passAll(t *testing.T, ifindex int, attach ebpf.AttachType) error {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:         ebpf.SchedCLS,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0 /* TC_ACT_OK */), asm.Return()},
		License:      "MIT",
	})
	if err != nil {
		return err
	}
	defer func() { _ = prog.Close() }()
	if isClsact() { // programs at tcx come before all filters, so there is nothing that could be promised
		return addFilter(hook{ifindex: ifindex, attach: attach}, FilterPriority, prog)
	}
	l, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: prog, Attach: attach})
	if err != nil {
		return err
	}
	t.Cleanup(func() { _ = l.Close() })
	return nil
}

// addFilter adds somebody else's filter. It goes with its device.
func addFilter(h hook, priority uint16, prog *ebpf.Program) error {
	if err := h.ensureClsact(); err != nil {
		return err
	}
	return netlink.FilterAdd(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: h.ifindex, Parent: h.parent(), Protocol: unix.ETH_P_ALL, Priority: priority},
		Fd:          prog.FD(), Name: "somebody", DirectAction: true,
	})
}
