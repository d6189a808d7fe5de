// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// fuzzBench is a pod in the mesh that excludes something.
func fuzzBench(f *testing.F, set settings) *bench {
	b := newBenchWith(f, set, Exclusions{CIDRs: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, Ports: []uint16{8443}})
	b.fillSlots(f)
	for _, fam := range bothFamilies {
		b.mesh(f, fam.member.Addr())
	}
	return b
}

// seeds are packets that have been trouble before, somewhere.
func seeds(f *testing.F) {
	for _, fam := range bothFamilies {
		syn := frame{src: fam.pod, dst: fam.member, flags: flagSYN}
		for _, edit := range []func(*frame){
			func(*frame) {},
			func(x *frame) { x.dst = fam.stranger },
			func(x *frame) { x.flags, x.payload = flagACK|flagPSH, []byte("data") },
			func(x *frame) { x.options = 40 },
			func(x *frame) { x.fragment = ipv4MoreFrags },
			func(x *frame) { x.fragment = 1 },
			func(x *frame) { x.doff = 15 },
			func(x *frame) { x.doff = 1 },
			func(x *frame) { x.cut = 10 },
			func(x *frame) { x.noLength = true },
			func(x *frame) { x.proto = unix.IPPROTO_UDP },
			func(x *frame) { x.etherType = unix.ETH_P_8021Q },
			func(x *frame) { x.etherType = unix.ETH_P_8021AD },
			func(x *frame) { x.etherType = unix.ETH_P_ARP },
			func(x *frame) { x.etherType = etherTypeIPv4 ^ etherTypeIPv6 ^ etherTypeOf(fam) },
			func(x *frame) { x.flags = 0xff },
			func(x *frame) { x.cut = 20 },
			func(x *frame) { x.fragment, x.proto = ipv4MoreFrags, unix.IPPROTO_UDP },
			func(x *frame) { x.src, x.dst = x.dst, x.src },
			func(x *frame) { x.dst = fam.loopbackPeer },
			func(x *frame) { x.dst = netip.AddrPortFrom(fam.member.Addr(), 15008) },
			func(x *frame) { x.dst = netip.AddrPortFrom(fam.member.Addr(), 8443) },
			func(x *frame) { x.dst, x.proto = netip.AddrPortFrom(fam.member.Addr(), 53), unix.IPPROTO_UDP },
		} {
			one := syn
			edit(&one)
			f.Add(one.bytes())
		}
		if fam.pod.Addr().Is6() {
			for n := range 10 {
				one := syn
				for range n {
					one.extensions = append(one.extensions, optionsHeader(unix.IPPROTO_DSTOPTS))
				}
				f.Add(one.bytes())
			}
			for _, e := range []extension{routingHeader(0), routingHeader(1), authHeader(), fragmentHeader(0, true), fragmentHeader(1, false)} {
				one := syn
				one.extensions = []extension{optionsHeader(unix.IPPROTO_HOPOPTS), e, e}
				f.Add(one.bytes())
				one.cut = 21
				f.Add(one.bytes())
			}
		}
		tagged := syn.bytes()
		f.Add(append(append(tagged[:12:12], 0x81, 0, 0, 0), tagged[12:]...)) // VLAN 0: no VLAN
		for _, n := range []int{14, 15, 33, 34, 35} {
			f.Add(tagged[:n])
		}
	}
}

func etherTypeOf(fam family) uint16 {
	if fam.pod.Addr().Is4() {
		return etherTypeIPv4
	}
	return etherTypeIPv6
}

// FuzzPackets runs any frame through the programs of tcx, under different settings. They always answer one of their
// results; no plain SYN to a member passes capture or guard; and what capture lets pass, guard does not stop, but for
// frames with VLAN tags.
func FuzzPackets(f *testing.F) {
	seeds(f)
	benches := []*bench{
		fuzzBench(f, settings{}), fuzzBench(f, settings{captureDNS: true}), fuzzBench(f, settings{captureAll: true, bypassInbound: true}),
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) < 14 || len(data) > 1500 {
			return // the kernel takes no others in a test run
		}
		for _, b := range benches {
			b.fuzzPacket(t, data)
		}
	})
}

func (b *bench) fuzzPacket(t *testing.T, data []byte) {
	act := map[*ebpf.Program]uint32{}
	err := b.ns.Do(func() (err error) {
		for _, prog := range []*ebpf.Program{b.Capture, b.Local, b.Guard} {
			if act[prog], err = prog.Run(&ebpf.RunOptions{Data: data}); err != nil {
				return err
			}
		}
		return nil
	})
	if errors.Is(err, unix.EINVAL) { // the kernel refuses frames that are too short for what they say they are
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	capture, guard := act[b.Capture], act[b.Guard]
	if capture != actNext && capture != actShot && capture != actRedirect {
		t.Errorf("capture: got %d", int32(capture))
	}
	if got := act[b.Local]; got != actNext {
		t.Errorf("local: got %d", int32(got))
	}
	if guard != actNext && guard != actShot {
		t.Errorf("guard: got %d", int32(guard))
	}
	if isPlainSYNToMember(data) && (guard != actShot || capture == actNext) {
		t.Errorf("a SYN to a member: capture %d, guard %d", int32(capture), int32(guard))
	}
	kind := binary.BigEndian.Uint16(data[12:])
	if isTagged := kind == unix.ETH_P_8021Q || kind == unix.ETH_P_8021AD; capture == actNext && guard == actShot && !isTagged {
		t.Error("guard stops what capture let pass")
	}
}

// isPlainSYNToMember reads frames in the simplest way, so that it can be trusted: no extensions, no tags.
func isPlainSYNToMember(b []byte) bool {
	var dst netip.Addr
	var tcp []byte
	switch kind := binary.BigEndian.Uint16(b[12:]); {
	case kind == etherTypeIPv4 && len(b) >= 54 && b[14] >= 0x45 && b[14] < 0x50 && b[23] == unix.IPPROTO_TCP && binary.BigEndian.Uint16(b[20:])&0x3fff == 0:
		dst, tcp = netip.AddrFrom4([4]byte(b[30:34])), b[min(len(b), 14+4*int(b[14]&15)):]
	case kind == etherTypeIPv6 && len(b) >= 74 && b[14]>>4 == 6 && b[20] == unix.IPPROTO_TCP:
		dst, tcp = netip.AddrFrom16([16]byte(b[38:54])).Unmap(), b[54:]
	default:
		return false
	}
	if len(tcp) < 20 {
		return false
	}
	port := binary.BigEndian.Uint16(tcp[2:])
	isMember := dst == bothFamilies[0].member.Addr() || dst == bothFamilies[1].member.Addr()
	return isMember && port != HBONEPort && port != 8443 && tcp[12]>>4 >= 5 && tcp[13]&(flagSYN|flagACK) == flagSYN
}

// FuzzLookups runs any context through dispatch: no error, and never a socket that is not in a slot.
func FuzzLookups(f *testing.F) {
	f.Add(uint32(unix.AF_INET), uint32(unix.IPPROTO_TCP), []byte("0123456789abcdef"), []byte("fedcba9876543210"), uint16(40000), uint16(80))
	f.Add(uint32(unix.AF_INET6), uint32(unix.IPPROTO_UDP), []byte("0123456789abcdef"), []byte("fedcba9876543210"), uint16(40000), uint16(53))
	f.Add(uint32(unix.AF_INET), uint32(unix.IPPROTO_TCP), []byte{127, 0, 0, 1}, []byte{127, 0, 0, 1}, uint16(1), uint16(15008))
	b := fuzzBench(f, settings{captureDNS: true})
	slots := map[uint64]bool{0: true}
	for _, cookie := range b.fillSlots(f) {
		slots[cookie] = true
	}
	f.Fuzz(func(t *testing.T, family, protocol uint32, remote, local []byte, rport, lport uint16) {
		ctx := skLookup{Family: family, Protocol: protocol, LocalPort: uint32(lport)}
		copy(ctx.RemoteIP4[:], remote)
		copy(ctx.LocalIP4[:], local)
		copy(ctx.RemoteIP6[:], remote)
		copy(ctx.LocalIP6[:], local)
		binary.BigEndian.PutUint16(ctx.RemotePort[:], rport)
		var out skLookup
		var act uint32
		err := b.ns.Do(func() (err error) {
			act, err = b.Dispatch.Run(&ebpf.RunOptions{Context: &ctx, ContextOut: &out})
			return err
		})
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ERANGE) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if act != skPass && act != skDrop || !slots[out.Cookie] {
			t.Errorf("got %d, socket %d", act, out.Cookie)
		}
	})
}
