// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// family is a pod and its peers in one IP family, for tests that run in both.
type family struct {
	name                   string
	pod, member, stranger  netip.AddrPort
	loopback, loopbackPeer netip.AddrPort
}

var bothFamilies = []family{
	{
		"IPv4",
		netip.MustParseAddrPort("10.1.0.2:40000"), netip.MustParseAddrPort("10.1.0.3:80"), netip.MustParseAddrPort("198.51.100.9:80"),
		netip.MustParseAddrPort("127.0.0.1:40000"), netip.MustParseAddrPort("127.8.9.1:80"),
	},
	{
		"IPv6",
		netip.MustParseAddrPort("[fd01::2]:40000"), netip.MustParseAddrPort("[fd01::3]:80"), netip.MustParseAddrPort("[2001:db8::9]:80"),
		netip.MustParseAddrPort("[::1]:40000"), netip.MustParseAddrPort("[::1]:80"),
	},
}

func TestCaptureDecidesByDestination(t *testing.T) {
	captured := newBench(t, settings{captureAll: true})
	captured.mesh(t)
	incomplete := newBench(t, settings{})
	meshed := newBench(t, settings{})
	for _, b := range []*bench{captured, incomplete, meshed} {
		b.fillSlots(t)
	}
	for _, f := range bothFamilies {
		meshed.mesh(t, f.member.Addr())
	}
	for _, f := range bothFamilies {
		syn := func(dst netip.AddrPort) frame { return frame{src: f.pod, dst: dst, flags: flagSYN} }
		data := func(dst netip.AddrPort) frame {
			return frame{src: f.pod, dst: dst, flags: flagACK | flagPSH, payload: []byte("x")}
		}
		for _, tt := range []struct {
			name    string
			bench   *bench
			frame   frame
			act     uint32
			verdict Verdict
		}{
			{"SYN to a member", meshed, syn(f.member), actRedirect, VerdictCaptured},
			{"SYN to a stranger", meshed, syn(f.stranger), actNext, VerdictPassthrough},
			{"SYN to a stranger, set incomplete", incomplete, syn(f.stranger), actRedirect, VerdictCaptured},
			{"SYN to a stranger, all captured", captured, syn(f.stranger), actRedirect, VerdictCaptured},
			{"data to a stranger", meshed, data(f.stranger), actNext, VerdictStrayPassthrough},
			{"data to a member", meshed, data(f.member), actShot, VerdictDropStray},
			{"data, set incomplete", incomplete, data(f.stranger), actShot, VerdictDropStray},
			{"data, all captured", captured, data(f.stranger), actShot, VerdictDropStray},
		} {
			t.Run(f.name+" "+tt.name, func(t *testing.T) {
				got := tt.bench.packet(t, tt.bench.Capture, tt.frame.bytes(), 0)
				if got.act != tt.act {
					t.Errorf("result: got %d, want %d", int32(got.act), int32(tt.act))
				}
				tt.bench.wantCounted(t, tt.verdict)
			})
		}
	}
}

func TestCaptureReadsEveryShapeOfHeader(t *testing.T) {
	b := newBench(t, settings{})
	b.fillSlots(t)
	for _, f := range bothFamilies {
		b.mesh(t, f.member.Addr())
	}
	v4, v6 := bothFamilies[0], bothFamilies[1]
	syn4 := frame{src: v4.pod, dst: v4.member, flags: flagSYN}
	syn6 := frame{src: v6.pod, dst: v6.member, flags: flagSYN}
	with := func(f frame, edit func(*frame)) frame { edit(&f); return f }
	ext := func(e ...extension) frame { return with(syn6, func(f *frame) { f.extensions = e }) }
	options := func(n int) (all []extension) {
		for range n {
			all = append(all, optionsHeader(unix.IPPROTO_DSTOPTS))
		}
		return all
	}
	for _, tt := range []struct {
		name    string
		frame   frame
		act     uint32
		verdict Verdict
	}{
		{"SYN with payload (Fast Open)", with(syn4, func(f *frame) { f.payload = []byte("data") }), actRedirect, VerdictCaptured},
		{"SYN with all other flags but ACK", with(syn4, func(f *frame) { f.flags |= flagFIN | flagRST | flagPSH }), actRedirect, VerdictCaptured},
		{"SYN with ECN flags", with(syn6, func(f *frame) { f.flags |= 0xc0 }), actRedirect, VerdictCaptured},
		{"IPv4 options 4", with(syn4, func(f *frame) { f.options = 4 }), actRedirect, VerdictCaptured},
		{"IPv4 options 40", with(syn4, func(f *frame) { f.options = 40 }), actRedirect, VerdictCaptured},
		{"IPv4 options, to a stranger", with(syn4, func(f *frame) { f.options, f.dst = 8, v4.stranger }), actNext, VerdictPassthrough},
		{"IPv6 hop-by-hop", ext(optionsHeader(unix.IPPROTO_HOPOPTS)), actRedirect, VerdictCaptured},
		{"IPv6 destination options", ext(optionsHeader(unix.IPPROTO_DSTOPTS)), actRedirect, VerdictCaptured},
		{"IPv6 routing, at its end", ext(routingHeader(0)), actRedirect, VerdictCaptured},
		{"IPv6 routing, on its way", ext(routingHeader(1)), actShot, VerdictDropHeaders},
		{"IPv6 AH", ext(authHeader()), actRedirect, VerdictCaptured},
		{"IPv6 all kinds", ext(optionsHeader(unix.IPPROTO_HOPOPTS), routingHeader(0), authHeader(), optionsHeader(unix.IPPROTO_DSTOPTS)), actRedirect, VerdictCaptured},
		{"IPv6 8 extensions", ext(options(8)...), actRedirect, VerdictCaptured},
		{"IPv6 9 extensions", ext(options(9)...), actShot, VerdictDropHeaders},
		{"IPv6 9 extensions to a stranger", with(ext(options(9)...), func(f *frame) { f.dst = v6.stranger }), actShot, VerdictDropHeaders},
		{"IPv6 extension cut short", with(ext(options(1)...), func(f *frame) { f.cut = 26 }), actShot, VerdictDropMalformed},

		{"IPv4 first fragment", with(syn4, func(f *frame) { f.fragment = ipv4MoreFrags }), actShot, VerdictDropFragment},
		{"IPv4 later fragment", with(syn4, func(f *frame) { f.fragment = 1 }), actShot, VerdictDropFragment},
		{"IPv4 fragment to a stranger", with(syn4, func(f *frame) { f.fragment, f.dst = 1, v4.stranger }), actNext, VerdictFragment},
		{"IPv4 UDP fragment", with(syn4, func(f *frame) { f.fragment, f.proto = 1, unix.IPPROTO_UDP }), actNext, VerdictNotTCP},
		{"IPv4 don't fragment", with(syn4, func(f *frame) { f.fragment = 0x4000 }), actRedirect, VerdictCaptured},
		{"IPv6 first fragment", ext(fragmentHeader(0, true)), actShot, VerdictDropFragment},
		{"IPv6 later fragment", ext(fragmentHeader(9, false)), actShot, VerdictDropFragment},
		{"IPv6 only fragment", ext(fragmentHeader(0, false)), actShot, VerdictDropFragment},
		{"IPv6 fragment, options inside", ext(fragmentHeader(1, true), optionsHeader(unix.IPPROTO_DSTOPTS)), actShot, VerdictDropFragment},
		{"IPv6 fragment to a stranger", with(ext(fragmentHeader(1, true)), func(f *frame) { f.dst = v6.stranger }), actNext, VerdictFragment},
		{"IPv6 UDP fragment", with(ext(fragmentHeader(1, true)), func(f *frame) { f.proto = unix.IPPROTO_UDP }), actNext, VerdictNotTCP},
		{"IPv6 fragment cut short", with(ext(fragmentHeader(0, true)), func(f *frame) { f.cut = 22 }), actShot, VerdictDropMalformed},

		{"TCP header cut short", with(syn4, func(f *frame) { f.cut = 1 }), actShot, VerdictDropMalformed},
		{"TCP header length 16", with(syn6, func(f *frame) { f.doff = 4 }), actShot, VerdictDropMalformed},
		{"IPv6 that says it is IPv4", with(syn6, func(f *frame) { f.etherType = etherTypeIPv4 }), actShot, VerdictDropMalformed},

		{"UDP", with(syn4, func(f *frame) { f.proto = unix.IPPROTO_UDP }), actNext, VerdictNotTCP},
		{"ICMPv6", with(syn6, func(f *frame) { f.proto = unix.IPPROTO_ICMPV6 }), actNext, VerdictNotTCP},
		{"ESP", with(syn6, func(f *frame) { f.proto = unix.IPPROTO_ESP }), actNext, VerdictNotTCP},
		{"ARP", with(syn4, func(f *frame) { f.etherType = unix.ETH_P_ARP }), actNext, VerdictNotTCP},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := b.packet(t, b.Capture, tt.frame.bytes(), 0)
			if got.act != tt.act {
				t.Errorf("result: got %d, want %d", int32(got.act), int32(tt.act))
			}
			b.wantCounted(t, tt.verdict)
		})
	}
}

func TestBouncedPacketBearsMarkAndLoopbackAddress(t *testing.T) {
	b := newBench(t, settings{})
	b.fillSlots(t)
	for _, f := range bothFamilies {
		sent := frame{src: f.pod, dst: f.member, flags: flagSYN}.bytes()
		got := b.packet(t, b.Capture, sent, 0xffffffff)
		if got.mark != SteeringMark {
			t.Errorf("%s: mark: got %#x, want %#x", f.name, got.mark, SteeringMark)
		}
		want := append(make([]byte, macBytes), sent[macBytes:]...)
		if !bytes.Equal(got.data, want) {
			t.Errorf("%s: packet:\n got %x\nwant %x", f.name, got.data, want)
		}
	}
}

// TestSYNWithoutListenerIsReset: for IPv6 the kernel sends the reset, once dispatch has dropped the bounced SYN.
func TestSYNWithoutListenerIsReset(t *testing.T) {
	b := newBench(t, settings{})
	f := bothFamilies[0]
	for _, options := range []int{0, 40} {
		for _, payload := range []string{"", "fast open"} {
			sent := frame{src: f.pod, dst: f.member, flags: flagSYN, options: options, payload: []byte(payload)}.bytes()
			got := b.packet(t, b.Capture, sent, 0)
			if got.act != actRedirect {
				t.Errorf("options %d: got %d, want redirect", options, int32(got.act))
			}
			b.wantCounted(t, VerdictDropNoListener)
			want := slices.Clone(sent)
			swap(want[0:6], want[6:12])    // MAC
			swap(want[26:30], want[30:34]) // IPv4
			tcp := want[34+options:]
			swap(tcp[0:2], tcp[2:4])
			copy(tcp[4:16], []byte{0, 0, 0, 0, 0, 0, 0, 2, 0x50, flagRST | flagACK, 0, 0})
			tcp[16], tcp[17] = 0, 0
			binary.BigEndian.PutUint16(tcp[16:], checksum(tcp, frame{src: f.member, dst: f.pod}.pseudoHeader(len(tcp))))
			if !bytes.Equal(got.data, want) {
				t.Errorf("options %d:\n got %x\nwant %x", options, got.data, want)
			}
		}
	}
	v6 := bothFamilies[1]
	if got := b.packet(t, b.Capture, frame{src: v6.pod, dst: v6.member, flags: flagSYN}.bytes(), 0); got.mark != SteeringMark {
		t.Errorf("IPv6: mark: got %#x, want a bounced packet's", got.mark)
	}
	b.wantCounted(t, VerdictCaptured)
}

func swap(a, b []byte) {
	for i := range a {
		a[i], b[i] = b[i], a[i]
	}
}

func TestPassedPacketIsUntouched(t *testing.T) {
	b := newBench(t, settings{})
	b.mesh(t)
	for _, f := range bothFamilies {
		sent := frame{src: f.pod, dst: f.stranger, flags: flagSYN}.bytes()
		got := b.packet(t, b.Capture, sent, 0x1234)
		if got.mark != 0x1234 || !bytes.Equal(got.data, sent) {
			t.Errorf("%s: got mark %#x, packet %x, want mark 0x1234, packet %x", f.name, got.mark, got.data, sent)
		}
	}
}

// TestSegmentsWithoutSocket is about rule 4 for packets whose socket has no tag, or that no socket owns.
func TestSegmentsWithoutSocket(t *testing.T) {
	b := newBench(t, settings{}) // set incomplete: what may pass passes for another reason
	for _, f := range bothFamilies {
		for _, tt := range []struct {
			name  string
			flags byte
		}{
			{"ACK", flagACK}, {"RST", flagRST}, {"RST ACK", flagRST | flagACK}, {"FIN ACK", flagFIN | flagACK}, {"SYN ACK", flagSYN | flagACK},
		} {
			t.Run(f.name+" "+tt.name, func(t *testing.T) {
				seg := frame{src: f.pod, dst: f.member, flags: tt.flags}
				if got := b.packet(t, b.Capture, seg.bytes(), 0); got.act != actNext {
					t.Errorf("without payload: got %d, want next", int32(got.act))
				}
				b.wantCounted(t, VerdictStrayControl)
				seg.payload = []byte("x")
				if got := b.packet(t, b.Capture, seg.bytes(), 0); got.act != actShot {
					t.Errorf("with payload: got %d, want shot", int32(got.act))
				}
				b.wantCounted(t, VerdictDropStray)
				seg.payload, seg.noLength = nil, true
				if got := b.packet(t, b.Capture, seg.bytes(), 0); got.act != actShot {
					t.Errorf("of unknown length: got %d, want shot", int32(got.act))
				}
				b.wantCounted(t, VerdictDropStray)
			})
		}
	}
}

func TestProbeRepliesPassWhileFresh(t *testing.T) {
	b := newBench(t, settings{})
	for _, f := range bothFamilies {
		probe := newFlow(f.member, f.pod)
		reply := frame{src: f.pod, dst: f.member, flags: flagACK, payload: []byte("x")}.bytes()
		for _, tt := range []struct {
			age     time.Duration
			act     uint32
			verdict Verdict
		}{
			{0, actNext, VerdictProbeReply},
			{4 * time.Second, actNext, VerdictProbeReply},
			{6 * time.Second, actShot, VerdictDropStray},
			{-time.Hour, actShot, VerdictDropStray}, // the future
		} {
			t.Run(fmt.Sprint(f.name, " ", tt.age), func(t *testing.T) {
				mustPut(t, b.node.maps.ProbeFlows, &probe, ago(t, uint64(tt.age)))
				if got := b.packet(t, b.Capture, reply, 0); got.act != tt.act {
					t.Errorf("result: got %d, want %d", int32(got.act), int32(tt.act))
				}
				b.wantCounted(t, tt.verdict)
			})
		}
	}
}

func TestGrandfatheredConnectionsPass(t *testing.T) {
	b := newBench(t, settings{})
	b.fillSlots(t)
	for _, f := range bothFamilies {
		if err := grandfather(b.maps.Grandfathered, []captureFlow{newFlow(f.member, f.pod)}); err != nil {
			t.Fatal(err)
		}
		seg := frame{src: f.pod, dst: f.member, flags: flagACK, payload: []byte("x")}
		if got := b.packet(t, b.Capture, seg.bytes(), 0); got.act != actNext {
			t.Errorf("%s: data: got %d, want next", f.name, int32(got.act))
		}
		b.wantCounted(t, VerdictGrandfathered)
		seg.flags = flagSYN
		if got := b.packet(t, b.Capture, seg.bytes(), 0); got.act != actRedirect {
			t.Errorf("%s: a new connection: got %d, want redirect", f.name, int32(got.act))
		}
		b.wantCounted(t, VerdictCaptured)
	}
}

// TestAnswersToLocalSocketsBounce: the other end of the segment's flow is a socket of this namespace.
func TestAnswersToLocalSocketsBounce(t *testing.T) {
	b := newBench(t, settings{})
	for _, f := range bothFamilies {
		l := b.ns.Listen(t, "tcp", netip.AddrPortFrom(f.loopback.Addr(), 0).String())
		conn, err := b.ns.Dial(context.Background(), "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		listener, client := addrPortOf(l.Addr()), addrPortOf(conn.LocalAddr())

		for _, payload := range []string{"", "x"} {
			seg := frame{src: listener, dst: client, flags: flagACK, payload: []byte(payload)}
			if got := b.packet(t, b.Capture, seg.bytes(), 0); got.act != actRedirect {
				t.Errorf("%s: to an open connection: got %d, want redirect", f.name, int32(got.act))
			}
			b.wantCounted(t, VerdictReply)
		}
		stranger := netip.AddrPortFrom(f.loopback.Addr(), client.Port()+1)
		seg := frame{src: stranger, dst: listener, flags: flagACK, payload: []byte("x")}
		if got := b.packet(t, b.Capture, seg.bytes(), 0); got.act != actShot {
			t.Errorf("%s: to a listener only: got %d, want shot", f.name, int32(got.act))
		}
		b.wantCounted(t, VerdictDropStray)
	}
}

func addrPortOf(a net.Addr) netip.AddrPort { return netip.MustParseAddrPort(a.String()) }
