// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

func TestGuardDropsOnlyWhatIsNotMutualTLS(t *testing.T) {
	meshed, incomplete := newBench(t, settings{}), newBench(t, settings{})
	for _, f := range bothFamilies {
		meshed.mesh(t, f.member.Addr())
		if err := incomplete.node.Destinations().Add(f.member.Addr()); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range bothFamilies {
		hbone := netip.AddrPortFrom(f.member.Addr(), HBONEPort)
		syn := func(dst netip.AddrPort) frame { return frame{src: f.pod, dst: dst, flags: flagSYN} }
		fragment := func(dst netip.AddrPort, proto byte) frame {
			return frame{src: f.pod, dst: dst, proto: proto, fragment: 1, extensions: []extension{fragmentHeader(1, true)}}
		}
		for _, tt := range []struct {
			name    string
			bench   *bench
			frame   frame
			act     uint32
			verdict Verdict
		}{
			{"SYN to a member", meshed, syn(f.member), actShot, VerdictDropLeak},
			{"SYN with payload", meshed, frame{src: f.pod, dst: f.member, flags: flagSYN, payload: []byte("x")}, actShot, VerdictDropLeak},
			{"SYN to a member's HBONE port", meshed, syn(hbone), actNext, 0},
			{"SYN to a stranger", meshed, syn(f.stranger), actNext, 0},
			{"SYN, set incomplete", incomplete, syn(f.member), actNext, 0},
			{"SYN ACK", meshed, frame{src: f.pod, dst: f.member, flags: flagSYN | flagACK}, actNext, 0},
			{"data", meshed, frame{src: f.pod, dst: f.member, flags: flagACK, payload: []byte("x")}, actNext, 0},
			{"UDP", meshed, frame{src: f.pod, dst: f.member, flags: flagSYN, proto: unix.IPPROTO_UDP}, actNext, 0},
			{"ARP", meshed, frame{src: f.pod, dst: f.member, etherType: unix.ETH_P_ARP}, actNext, 0},
			{"two VLAN tags", meshed, frame{src: f.pod, dst: f.member, flags: flagSYN, etherType: unix.ETH_P_8021Q}, actShot, VerdictDropLeakTagged},
			{"two VLAN tags, the outer a provider's", meshed, frame{src: f.pod, dst: f.member, flags: flagSYN, etherType: unix.ETH_P_8021AD}, actShot, VerdictDropLeakTagged},
			{"two VLAN tags, set incomplete", incomplete, frame{src: f.pod, dst: f.member, flags: flagSYN, etherType: unix.ETH_P_8021Q}, actNext, 0},
			{"fragment to a member", meshed, fragment(f.member, 0), actShot, VerdictDropLeakFragment},
			{"fragment to a member's HBONE port", meshed, fragment(hbone, 0), actShot, VerdictDropLeakFragment},
			{"fragment to a stranger", meshed, fragment(f.stranger, 0), actNext, 0},
			{"UDP fragment", meshed, fragment(f.member, unix.IPPROTO_UDP), actNext, 0},
			{"fragment, set incomplete", incomplete, fragment(f.member, 0), actNext, 0},
			{"cut short", meshed, frame{src: f.pod, dst: f.member, flags: flagSYN, cut: 12}, actNext, 0},
		} {
			t.Run(f.name+" "+tt.name, func(t *testing.T) {
				got := tt.bench.packet(t, tt.bench.Guard, tt.frame.bytes(), 0)
				if got.act != tt.act {
					t.Errorf("result: got %d, want %d", int32(got.act), int32(tt.act))
				}
				tt.bench.wantCounted(t, tt.verdict)
			})
		}
	}
}

func TestGuardDropsWhatHidesBehindHeaders(t *testing.T) {
	b := newBench(t, settings{})
	f := bothFamilies[1]
	b.mesh(t, f.member.Addr())
	hidden := frame{src: f.pod, dst: f.member, flags: flagSYN}
	for range 9 {
		hidden.extensions = append(hidden.extensions, optionsHeader(unix.IPPROTO_DSTOPTS))
	}
	if got := b.packet(t, b.Guard, hidden.bytes(), 0); got.act != actShot {
		t.Errorf("to a member: got %d, want shot", int32(got.act))
	}
	b.wantCounted(t, VerdictDropLeakHeaders)
	hidden.dst = f.stranger
	if got := b.packet(t, b.Guard, hidden.bytes(), 0); got.act != actNext {
		t.Errorf("to a stranger: got %d, want next", int32(got.act))
	}
	b.wantCounted(t, 0)
}
