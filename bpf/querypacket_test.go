// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// fillDNSSlots puts a socket of its own into each slot for queries and returns their cookies.
func (b *bench) fillDNSSlots(t testing.TB) map[Slot]uint64 {
	t.Helper()
	cookies := map[Slot]uint64{}
	for _, s := range DNSSlots() {
		kind := unix.SOCK_STREAM
		if s.IsUDP() {
			kind = unix.SOCK_DGRAM
		}
		var fd int
		b.ns.MustDo(t, func() (err error) {
			if fd, err = unix.Socket(s.family(), kind|unix.SOCK_CLOEXEC, 0); err != nil {
				return err
			}
			var addr unix.Sockaddr = &unix.SockaddrInet4{}
			if s.IsIPv6() {
				addr = &unix.SockaddrInet6{}
			}
			if err := unix.Bind(fd, addr); err != nil || s.IsUDP() {
				return err
			}
			return unix.Listen(fd, 1)
		})
		t.Cleanup(func() { _ = unix.Close(fd) })
		mustPut(t, b.maps.Listeners, uint32(s), uint64(fd))
		cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
		if err != nil {
			t.Fatal(err)
		}
		cookies[s] = cookie
	}
	return cookies
}

// TestCaptureBouncesQueries: whether the server is in the mesh or not, but only where the pod asks for it.
func TestCaptureBouncesQueries(t *testing.T) {
	with, without, empty := newBench(t, settings{captureDNS: true}), newBench(t, settings{}), newBench(t, settings{captureDNS: true})
	with.fillDNSSlots(t)
	for _, f := range bothFamilies {
		for _, b := range []*bench{with, without, empty} {
			b.mesh(t, f.member.Addr())
		}
	}
	for _, f := range bothFamilies {
		to := func(a netip.AddrPort, port uint16) netip.AddrPort { return netip.AddrPortFrom(a.Addr(), port) }
		udp := func(dst netip.AddrPort) frame { return frame{src: f.pod, dst: dst, proto: unix.IPPROTO_UDP} }
		syn := func(dst netip.AddrPort) frame { return frame{src: f.pod, dst: dst, flags: flagSYN} }
		fragment := udp(to(f.member, 53))
		fragment.fragment, fragment.extensions = ipv4MoreFrags, []extension{fragmentHeader(0, true)}
		if f.pod.Addr().Is4() {
			fragment.extensions = nil
		}
		short := udp(to(f.stranger, 53))
		short.cut = 13
		answer := udp(f.stranger)
		answer.src = to(f.pod, 53)
		refused := VerdictDNSCaptured // for IPv6 dispatch counts the refusal
		if f.pod.Addr().Is4() {
			refused = VerdictDropNoListener
		}
		for _, tt := range []struct {
			name    string
			bench   *bench
			frame   frame
			act     uint32
			verdict Verdict
		}{
			{"query to a stranger", with, udp(to(f.stranger, 53)), actRedirect, VerdictDNSCaptured},
			{"query to a member", with, udp(to(f.member, 53)), actRedirect, VerdictDNSCaptured},
			{"SYN to a stranger", with, syn(to(f.stranger, 53)), actRedirect, VerdictDNSCaptured},
			{"SYN to a member", with, syn(to(f.member, 53)), actRedirect, VerdictDNSCaptured},
			{"another port", with, udp(to(f.stranger, 54)), actNext, VerdictNotTCP},
			{"an answer", with, answer, actNext, VerdictNotTCP},
			{"fragment", with, fragment, actNext, VerdictNotTCP},
			{"cut short", with, short, actNext, VerdictNotTCP},
			{"query, not asked for", without, udp(to(f.member, 53)), actNext, VerdictNotTCP},
			{"SYN to a stranger, not asked for", without, syn(to(f.stranger, 53)), actNext, VerdictPassthrough},
			{"SYN, no resolver", empty, syn(to(f.stranger, 53)), actRedirect, refused},
		} {
			t.Run(f.name+" "+tt.name, func(t *testing.T) {
				got := tt.bench.packet(t, tt.bench.Capture, tt.frame.bytes(), 0)
				if got.act != tt.act {
					t.Errorf("result: got %d, want %d", int32(got.act), int32(tt.act))
				}
				if bounced := got.mark == SteeringMark; bounced != (tt.verdict == VerdictDNSCaptured) {
					t.Errorf("mark: got %#x", got.mark)
				}
				tt.bench.wantCounted(t, tt.verdict)
			})
		}
	}
}

// TestDispatchGivesQueriesToTheResolver: bounced ones. Those from the network and those to loopback are the app's, as a
// resolver in the pod may be.
func TestDispatchGivesQueriesToTheResolver(t *testing.T) {
	bounced := newBench(t, settings{captureDNS: true, everythingFromLo: true})
	network, without := newBench(t, settings{captureDNS: true}), newBench(t, settings{everythingFromLo: true})
	empty := newBench(t, settings{captureDNS: true, everythingFromLo: true})
	cookies := map[*bench]map[Slot]uint64{}
	for _, b := range []*bench{bounced, network, without} {
		cookies[b] = b.fillDNSSlots(t)
		for slot, cookie := range b.fillSlots(t) {
			cookies[b][slot] = cookie
		}
	}
	const app, none = Slot(99), Verdict(0)
	for _, f := range bothFamilies {
		to := func(a netip.AddrPort, port uint16) netip.AddrPort { return netip.AddrPortFrom(a.Addr(), port) }
		for _, tt := range []struct {
			name    string
			bench   *bench
			proto   uint32
			dst     netip.AddrPort
			act     uint32
			slot    Slot
			verdict Verdict
		}{
			{"UDP", bounced, unix.IPPROTO_UDP, to(f.stranger, 53), skPass, SlotDNSUDP4, VerdictDNS},
			{"TCP", bounced, unix.IPPROTO_TCP, to(f.stranger, 53), skPass, SlotDNSTCP4, VerdictDNS},
			{"UDP to another port", bounced, unix.IPPROTO_UDP, to(f.stranger, 54), skPass, app, none},
			{"TCP to another port", bounced, unix.IPPROTO_TCP, to(f.stranger, 54), skPass, SlotOutbound4, VerdictOutbound},
			{"UDP to loopback", bounced, unix.IPPROTO_UDP, to(f.loopbackPeer, 53), skPass, app, none},
			{"TCP to loopback", bounced, unix.IPPROTO_TCP, to(f.loopbackPeer, 53), skPass, app, VerdictLoopback},
			{"UDP from the network", network, unix.IPPROTO_UDP, to(f.pod, 53), skPass, app, none},
			{"TCP from the network", network, unix.IPPROTO_TCP, to(f.pod, 53), skPass, SlotInbound4, VerdictInbound},
			{"UDP, not asked for", without, unix.IPPROTO_UDP, to(f.stranger, 53), skPass, app, none},
			{"TCP, not asked for", without, unix.IPPROTO_TCP, to(f.stranger, 53), skPass, SlotOutbound4, VerdictOutbound},
			{"UDP, no resolver", empty, unix.IPPROTO_UDP, to(f.stranger, 53), skDrop, app, VerdictDropNoListener},
			{"TCP, no resolver", empty, unix.IPPROTO_TCP, to(f.stranger, 53), skDrop, app, VerdictDropNoListener},
		} {
			t.Run(f.name+" "+tt.name, func(t *testing.T) {
				ctx := newLookup(f.pod, tt.dst)
				ctx.Protocol = tt.proto
				var want uint64
				if tt.slot != app {
					want = cookies[tt.bench][f.slot(tt.slot)]
				}
				if act, cookie := tt.bench.lookup(t, ctx); act != tt.act || cookie != want {
					t.Errorf("got %d, socket %d, want %d, socket %d", act, cookie, tt.act, want)
				}
				tt.bench.wantCounted(t, tt.verdict)
			})
		}
	}
}

// TestBypassLeavesInboundToTheApp: but mutual TLS goes to ztunnel, and connections of the pod's own are as ever.
func TestBypassLeavesInboundToTheApp(t *testing.T) {
	network, bounced := newBench(t, settings{bypassInbound: true}), newBench(t, settings{bypassInbound: true, everythingFromLo: true})
	cookies := map[*bench]map[Slot]uint64{network: network.fillSlots(t), bounced: bounced.fillSlots(t)}
	for _, f := range bothFamilies {
		for _, tt := range []struct {
			bench   *bench
			port    uint16
			want    uint64
			verdict Verdict
		}{
			{network, 80, 0, VerdictBypassInbound},
			{network, HBONEPort, cookies[network][f.slot(SlotHBONE4)], VerdictHBONE},
			{bounced, 80, cookies[bounced][f.slot(SlotOutbound4)], VerdictOutbound},
		} {
			act, cookie := tt.bench.lookup(t, newLookup(f.stranger, netip.AddrPortFrom(f.pod.Addr(), tt.port)))
			if act != skPass || cookie != tt.want {
				t.Errorf("%s %v: got %d, socket %d, want %d, socket %d", f.name, tt.verdict, act, cookie, skPass, tt.want)
			}
			tt.bench.wantCounted(t, tt.verdict)
		}
		for flags, want := range map[byte]Verdict{flagACK: VerdictBypassReply, flagSYN | flagACK: VerdictBypassReply, flagRST: VerdictBypassReply, flagSYN: VerdictCaptured} {
			t.Run(fmt.Sprint(f.name, " capture ", want, flags), func(t *testing.T) {
				seg := frame{src: f.pod, dst: f.member, flags: flags}
				act := uint32(actNext)
				if want == VerdictCaptured {
					act = actRedirect
				}
				if got := network.packet(t, network.Capture, seg.bytes(), 0); got.act != act {
					t.Errorf("got %d, want %d", int32(got.act), int32(act))
				}
				network.wantCounted(t, want)
			})
		}
		// Payload needs the app's own socket: what is made by hand is stray, here as elsewhere.
		stray := frame{src: f.pod, dst: f.member, flags: flagACK, payload: []byte("x")}
		if got := network.packet(t, network.Capture, stray.bytes(), 0); got.act != actShot {
			t.Errorf("%s payload without a socket: got %d, want %d", f.name, int32(got.act), int32(actShot))
		}
		network.wantCounted(t, VerdictDropStray)
	}
}
