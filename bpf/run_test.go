// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// bench is one set of programs that nothing is attached to, over maps of its own, to be run packet by packet inside a
// namespace of its own.
type bench struct {
	Capture, Local, Dispatch, Guard *ebpf.Program

	node *Node
	maps *podMaps
	ns   *testutil.NS
}

func newBench(t testing.TB, set settings) *bench { return newBenchWith(t, set, Exclusions{}) }

func newBenchWith(t testing.TB, set settings, exclude Exclusions) *bench {
	t.Helper()
	testutil.RequireRoot(t)
	testutil.RequireKernel(t, "6.6", "tcx")
	b := &bench{node: &Node{}, maps: &podMaps{}, ns: testutil.NetNS(t, "bench")}
	specs, err := podMapSpecs(16)
	if err != nil {
		t.Fatal(err)
	}
	all := b.node.maps.byName()
	maps.Copy(all, b.maps.byName())
	for name, m := range all {
		if *m, err = ebpf.NewMap(specs[name]); err != nil {
			t.Fatalf("map %s: %v", name, err)
		}
		t.Cleanup(func() { _ = (*m).Close() })
	}
	excluded, err := exclude.create()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(excluded.Close)
	set.hasExclusions = !exclude.IsEmpty()
	progs := loadPrograms(&b.node.maps, b.maps, excluded, set)
	t.Cleanup(progs.Close)
	for into, wait := range map[**ebpf.Program]loading{
		&b.Capture: progs.capture, &b.Local: progs.local, &b.Dispatch: progs.dispatch, &b.Guard: progs.guard,
	} {
		if *into, err = wait(); err != nil {
			t.Fatalf("%+v", err)
		}
	}
	return b
}

// mesh makes the set of destinations complete, with these in it.
func (b *bench) mesh(t testing.TB, addrs ...netip.Addr) {
	t.Helper()
	d := b.node.Destinations()
	if err := d.Add(addrs...); err != nil {
		t.Fatal(err)
	}
	if err := d.SetComplete(true); err != nil {
		t.Fatal(err)
	}
}

// Results of programs at tcx.
const (
	actNext     = 0xffffffff // TC_ACT_UNSPEC: the next owner's program decides
	actShot     = 2
	actRedirect = 7
)

// skBuff is struct __sk_buff as far as we read it.
type skBuff struct {
	Len     uint32
	PktType uint32
	Mark    uint32
	_       [192 - 12]byte
}

type packetResult struct {
	act  uint32
	mark uint32
	data []byte
}

// packet runs one of the tcx programs.
func (b *bench) packet(t *testing.T, prog *ebpf.Program, data []byte, mark uint32) packetResult {
	t.Helper()
	var ctx skBuff
	in := skBuff{Mark: mark}
	opts := ebpf.RunOptions{Data: data, DataOut: make([]byte, len(data)), Context: &in, ContextOut: &ctx}
	var act uint32
	b.ns.MustDo(t, func() (err error) {
		act, err = prog.Run(&opts)
		return err
	})
	return packetResult{act, ctx.Mark, opts.DataOut}
}

// counted returns the verdicts that were counted since the last call, and resets them.
func (b *bench) counted(t *testing.T) map[Verdict]uint64 {
	t.Helper()
	got, err := readVerdicts(b.maps.Verdicts)
	if err != nil {
		t.Fatal(err)
	}
	zero := make([]uint64, ebpf.MustPossibleCPU())
	for v, n := range got {
		if n == 0 {
			delete(got, v)
		} else if err := b.maps.Verdicts.Put(uint32(v), zero); err != nil {
			t.Fatal(err)
		}
	}
	return got
}

// wantCounted checks that exactly this one verdict was counted, once; 0 means none.
func (b *bench) wantCounted(t *testing.T, want Verdict) {
	t.Helper()
	wanted := map[Verdict]uint64{}
	if want != 0 {
		wanted[want] = 1
	}
	if got := b.counted(t); !maps.Equal(got, wanted) {
		t.Errorf("counted: got %v, want %v", got, wanted)
	}
}

// ago is a kernel time some nanoseconds back, as bpf_ktime_get_ns counts.
func ago(t *testing.T, ns uint64) uint64 {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		t.Fatal(err)
	}
	return uint64(ts.Nano()) - ns
}

func mustPut(t testing.TB, m *ebpf.Map, key, value any) {
	t.Helper()
	if err := m.Put(key, value); err != nil {
		t.Fatal(err)
	}
}

// skLookup is struct bpf_sk_lookup. A test run needs its 72 bytes, tail padding included, both ways.
type skLookup struct {
	Cookie         uint64
	Family         uint32
	Protocol       uint32
	RemoteIP4      [4]byte
	RemoteIP6      [16]byte
	RemotePort     [2]byte // network order
	_              [2]byte
	LocalIP4       [4]byte
	LocalIP6       [16]byte
	LocalPort      uint32 // host order
	IngressIfindex uint32 // must be 0 in a test run
	_              [4]byte
}

func newLookup(src, dst netip.AddrPort) skLookup {
	ctx := skLookup{Family: unix.AF_INET, Protocol: unix.IPPROTO_TCP, LocalPort: uint32(dst.Port())}
	binary.BigEndian.PutUint16(ctx.RemotePort[:], src.Port())
	if src.Addr().Is4() {
		ctx.RemoteIP4, ctx.LocalIP4 = src.Addr().As4(), dst.Addr().As4()
	} else {
		ctx.Family = unix.AF_INET6
		ctx.RemoteIP6, ctx.LocalIP6 = src.Addr().As16(), dst.Addr().As16()
	}
	return ctx
}

// Results of dispatch.
const (
	skDrop = 0
	skPass = 1
)

// lookup runs dispatch and returns its result and the cookie of the socket that it chose, 0 for none.
func (b *bench) lookup(t *testing.T, ctx skLookup) (act uint32, cookie uint64) {
	t.Helper()
	var out skLookup
	b.ns.MustDo(t, func() (err error) {
		act, err = b.Dispatch.Run(&ebpf.RunOptions{Context: &ctx, ContextOut: &out})
		return err
	})
	return act, out.Cookie
}

func TestVerdictsHaveNames(t *testing.T) {
	spec, err := loadCapture()
	if err != nil {
		t.Fatal(err)
	}
	enum := mustEnum(t, spec, "verdict")
	seen := map[string]bool{}
	for name, value := range enum {
		v := Verdict(value)
		if slices.Contains([]string{"VERDICT_UNSPEC", "VERDICT_FIRST_DROP", "VERDICT_MAX"}, name) {
			continue
		}
		if _, ok := verdictNames[v]; !ok {
			t.Errorf("%s (%d) has no name", name, value)
		}
		if seen[v.String()] {
			t.Errorf("%s: the name %q is given twice", name, v)
		}
		seen[v.String()] = true
		if got, want := v.IsDrop(), len(name) > 13 && name[:13] == "VERDICT_DROP_"; got != want {
			t.Errorf("%s: IsDrop: got %v, want %v", name, got, want)
		}
		if value >= enum["VERDICT_MAX"] {
			t.Errorf("%s: %d does not fit the counters", name, value)
		}
	}
	if got, want := len(AllVerdicts()), len(seen); got != want {
		t.Errorf("AllVerdicts: got %d, want %d", got, want)
	}
	if got := Verdict(63).String(); got != "verdict-63" {
		t.Errorf("got %q", got)
	}
}

func TestSlotsHaveNames(t *testing.T) {
	var names []string
	for _, s := range slices.Concat(Slots(), DNSSlots()) {
		names = append(names, s.String())
		if got := strings.HasSuffix(s.String(), "6"); got != s.IsIPv6() {
			t.Errorf("%v: IsIPv6: got %v", s, s.IsIPv6())
		}
		if got := strings.Contains(s.String(), "udp"); got != s.IsUDP() {
			t.Errorf("%v: IsUDP: got %v", s, s.IsUDP())
		}
	}
	want := []string{"outbound4", "outbound6", "inbound4", "inbound6", "hbone4", "hbone6", "dnsudp4", "dnsudp6", "dnstcp4", "dnstcp6"}
	if !slices.Equal(names, want) {
		t.Errorf("got %v, want %v", names, want)
	}
	if got := fmt.Sprint(Slot(12), TagProxy, Tag(9)); got != "slot-12 proxy tag-9" {
		t.Errorf("got %q", got)
	}
}
