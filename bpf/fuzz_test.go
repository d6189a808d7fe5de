// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// fuzzBench is a pod in the mesh with every setting on that adds code.
func fuzzBench(f *testing.F) *bench {
	b := newBenchWith(f, settings{captureDNS: true}, Exclusions{CIDRs: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, Ports: []uint16{8443}})
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
		}
	}
}

// FuzzPackets runs any frame through the programs of tcx. They always answer one of their results; guard lets no plain
// SYN to a member pass; and what capture lets pass as it is, guard does not have to stop.
func FuzzPackets(f *testing.F) {
	seeds(f)
	b := fuzzBench(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) < 14 || len(data) > 1500 {
			return // the kernel takes no others in a test run
		}
		results := map[*ebpf.Program]uint32{}
		err := b.ns.Do(func() error {
			for _, prog := range []*ebpf.Program{b.Capture, b.Local, b.Guard} {
				act, err := prog.Run(&ebpf.RunOptions{Data: data})
				if err != nil {
					return err
				}
				results[prog] = act
			}
			return nil
		})
		if errors.Is(err, unix.EINVAL) { // the kernel refuses frames that are too short for what they say they are
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if act := results[b.Capture]; act != actNext && act != actShot && act != actRedirect {
			t.Errorf("capture: got %d", int32(act))
		}
		if act := results[b.Local]; act != actNext {
			t.Errorf("local: got %d", int32(act))
		}
		if act := results[b.Guard]; act != actNext && act != actShot {
			t.Errorf("guard: got %d", int32(act))
		}
		if isPlainSYNToMember(data) && (results[b.Guard] != actShot || results[b.Capture] == actNext) {
			t.Errorf("a SYN to a member: capture %d, guard %d", int32(results[b.Capture]), int32(results[b.Guard]))
		}
	})
}

// isPlainSYNToMember reads frames in the simplest way, so that it can be trusted: no options, no extensions, no tags.
func isPlainSYNToMember(b []byte) bool {
	var dst netip.Addr
	var tcp []byte
	switch kind := binary.BigEndian.Uint16(b[12:]); {
	case kind == etherTypeIPv4 && len(b) >= 54 && b[14] == 0x45 && b[23] == unix.IPPROTO_TCP && binary.BigEndian.Uint16(b[20:])&0x3fff == 0:
		dst, tcp = netip.AddrFrom4([4]byte(b[30:34])), b[34:]
	case kind == etherTypeIPv6 && len(b) >= 74 && b[20] == unix.IPPROTO_TCP:
		dst, tcp = netip.AddrFrom16([16]byte(b[38:54])).Unmap(), b[54:]
	default:
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
	testutil.RequireRoot(f)
	b := fuzzBench(f)
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
