// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fillSlots puts a listener of its own into each slot and returns their cookies.
func (b *bench) fillSlots(t testing.TB) map[Slot]uint64 {
	t.Helper()
	cookies := map[Slot]uint64{}
	for _, s := range Slots() {
		addr := "127.0.0.1:0"
		if s.IsIPv6() {
			addr = "[::1]:0"
		}
		fd := fdOf(t, b.ns.Listen(t, "tcp", addr))
		mustPut(t, b.maps.Listeners, uint32(s), uint64(fd))
		cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
		if err != nil {
			t.Fatal(err)
		}
		cookies[s] = cookie
	}
	return cookies
}

// fdOf is valid as long as l is.
func fdOf(t testing.TB, l net.Listener) (fd int) {
	t.Helper()
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(p uintptr) { fd = int(p) }); err != nil {
		t.Fatal(err)
	}
	return fd
}

// slotOf is slot for IPv4, the one after it for IPv6.
func (f family) slot(s Slot) Slot {
	if f.pod.Addr().Is6() {
		return s + 1
	}
	return s
}

func TestDispatchChoosesTheListener(t *testing.T) {
	const none = Slot(99)
	network, bounced := newBench(t, settings{}), newBench(t, settings{everythingFromLo: true})
	cookies := map[*bench]map[Slot]uint64{network: network.fillSlots(t), bounced: bounced.fillSlots(t)}
	for _, f := range bothFamilies {
		port := func(p uint16) netip.AddrPort { return netip.AddrPortFrom(f.pod.Addr(), p) }
		for _, tt := range []struct {
			name    string
			bench   *bench
			dst     netip.AddrPort
			slot    Slot
			verdict Verdict
		}{
			{"from the network", network, port(80), SlotInbound4, VerdictInbound},
			{"from the network to 15008", network, port(15008), SlotHBONE4, VerdictHBONE},
			{"from the network to 15006", network, port(15006), SlotInbound4, VerdictInbound},
			{"bounced", bounced, f.member, SlotOutbound4, VerdictOutbound},
			{"bounced to 15008", bounced, netip.AddrPortFrom(f.member.Addr(), 15008), SlotOutbound4, VerdictOutbound},
			{"to loopback", bounced, f.loopbackPeer, none, VerdictLoopback},
		} {
			t.Run(f.name+" "+tt.name, func(t *testing.T) {
				act, cookie := tt.bench.lookup(t, newLookup(f.stranger, tt.dst))
				var want uint64
				if tt.slot != none {
					want = cookies[tt.bench][f.slot(tt.slot)]
				}
				if act != skPass || cookie != want {
					t.Errorf("got %d, socket %d, want %d, socket %d", act, cookie, skPass, want)
				}
				tt.bench.wantCounted(t, tt.verdict)
			})
		}
	}
}

func TestDispatchRefusesWhenTheSlotIsEmpty(t *testing.T) {
	for _, set := range []settings{{}, {everythingFromLo: true}} {
		b := newBench(t, set)
		for _, f := range bothFamilies {
			for _, port := range []uint16{80, HBONEPort} {
				act, cookie := b.lookup(t, newLookup(f.stranger, netip.AddrPortFrom(f.pod.Addr(), port)))
				if act != skDrop || cookie != 0 {
					t.Errorf("%s port %d: got %d, socket %d, want drop", f.name, port, act, cookie)
				}
				b.wantCounted(t, VerdictDropNoListener)
			}
		}
	}
}

func TestDispatchLeavesFreshFlowsToTheApp(t *testing.T) {
	b := newBench(t, settings{})
	cookies := b.fillSlots(t)
	for _, f := range bothFamilies {
		for _, tt := range []struct {
			local   bool
			age     time.Duration
			verdict Verdict
		}{
			{true, 0, VerdictLocalFlow},
			{true, 900 * time.Millisecond, VerdictLocalFlow},
			{true, 1100 * time.Millisecond, VerdictInbound},
			{true, -time.Minute, VerdictInbound}, // the future
			{false, 0, VerdictProbe},
			{false, 4500 * time.Millisecond, VerdictProbe},
			{false, 5100 * time.Millisecond, VerdictInbound},
		} {
			t.Run(fmt.Sprint(f.name, " local=", tt.local, " ", tt.age), func(t *testing.T) {
				flow := newFlow(f.member, f.pod)
				m := b.node.maps.ProbeFlows
				if tt.local {
					m = b.maps.LocalFlows
				}
				mustPut(t, m, &flow, ago(t, uint64(tt.age)))
				defer func() { _ = m.Delete(&flow) }()
				var want uint64
				if tt.verdict == VerdictInbound {
					want = cookies[f.slot(SlotInbound4)]
				}
				act, cookie := b.lookup(t, newLookup(f.member, f.pod))
				if act != skPass || cookie != want {
					t.Errorf("got %d, socket %d, want %d, socket %d", act, cookie, skPass, want)
				}
				b.wantCounted(t, tt.verdict)
			})
		}
	}
}

// TestDispatchGivesMutualTLSOfTheHostToTheProxy: port 15008 is no app's, whoever connects.
func TestDispatchGivesMutualTLSOfTheHostToTheProxy(t *testing.T) {
	b := newBench(t, settings{})
	cookies := b.fillSlots(t)
	for _, f := range bothFamilies {
		to := netip.AddrPortFrom(f.pod.Addr(), HBONEPort)
		flow := newFlow(f.member, to)
		mustPut(t, b.node.maps.ProbeFlows, &flow, ago(t, 0))
		act, cookie := b.lookup(t, newLookup(f.member, to))
		if want := cookies[f.slot(SlotHBONE4)]; act != skPass || cookie != want {
			t.Errorf("%s: got %d, socket %d, want %d, socket %d", f.name, act, cookie, skPass, want)
		}
		b.wantCounted(t, VerdictHBONE)
	}
}

// TestDispatchGivesBouncedProbesToTheProxy: what comes by lo is never a probe, whatever the host once recorded.
func TestDispatchGivesBouncedProbesToTheProxy(t *testing.T) {
	b := newBench(t, settings{everythingFromLo: true})
	cookies := b.fillSlots(t)
	f := bothFamilies[0]
	flow := newFlow(f.pod, f.member)
	mustPut(t, b.node.maps.ProbeFlows, &flow, ago(t, 0))
	if act, cookie := b.lookup(t, newLookup(f.pod, f.member)); act != skPass || cookie != cookies[SlotOutbound4] {
		t.Errorf("got %d, socket %d, want socket %d", act, cookie, cookies[SlotOutbound4])
	}
}

func TestDispatchLeavesUDPAlone(t *testing.T) {
	b := newBench(t, settings{})
	b.fillSlots(t)
	for _, f := range bothFamilies {
		ctx := newLookup(f.stranger, f.pod)
		ctx.Protocol = unix.IPPROTO_UDP
		if act, cookie := b.lookup(t, ctx); act != skPass || cookie != 0 {
			t.Errorf("%s: got %d, socket %d, want pass, none", f.name, act, cookie)
		}
		b.wantCounted(t, 0)
	}
}

// TestDispatchHidesListenersFromCapture: it is asked when capture looks for a connection, and must neither answer
// nor count.
func TestDispatchHidesListenersFromCapture(t *testing.T) {
	b := newBench(t, settings{})
	b.fillSlots(t)
	searching := make([]uint32, len(b.perCPU(t)))
	for i := range searching {
		searching[i] = 1
	}
	mustPut(t, b.maps.Searching, uint32(0), searching)
	act, cookie := b.lookup(t, newLookup(bothFamilies[0].stranger, bothFamilies[0].pod))
	if act != skDrop || cookie != 0 {
		t.Errorf("got %d, socket %d, want drop, none", act, cookie)
	}
	b.wantCounted(t, 0)
}

// perCPU is searching as it is now.
func (b *bench) perCPU(t *testing.T) (values []uint32) {
	t.Helper()
	if err := b.maps.Searching.Lookup(uint32(0), &values); err != nil {
		t.Fatal(err)
	}
	return values
}
