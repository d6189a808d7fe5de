// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

func TestDestinations(t *testing.T) {
	w := newWorld(t)
	d := w.Destinations()
	if got, err := d.Complete(); got || err != nil {
		t.Errorf("new: complete: got %v, %v, want false", got, err)
	}
	v4, v6 := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")
	for range 2 {
		if err := d.Add(v4, v6, netip.MustParseAddr("::ffff:10.0.0.1")); err != nil {
			t.Error(err)
		}
	}
	if got, err := d.List(); err != nil || !slices.Equal(got, []netip.Addr{v4, v6}) {
		t.Errorf("List: got %v, %v, want %v, %v", got, err, v4, v6)
	}
	for range 2 {
		if err := d.Remove(v4); err != nil {
			t.Error(err)
		}
	}
	if got, err := d.List(); err != nil || !slices.Equal(got, []netip.Addr{v6}) {
		t.Errorf("List: got %v, %v, want %v", got, err, v6)
	}
	for _, want := range []bool{true, false, true} {
		if err := d.SetComplete(want); err != nil {
			t.Error(err)
		}
		if got, err := d.Complete(); got != want || err != nil {
			t.Errorf("complete: got %v, %v, want %v", got, err, want)
		}
	}
}

// TestSuccessorOfDestinationsIsFound: who filled the set before an upgrade of the agent, or its rollback, can go on.
func TestSuccessorOfDestinationsIsFound(t *testing.T) {
	w := newWorld(t)
	root := filepath.Join(filepath.Dir(w.root), "older")
	held := oldNode(t, root).Destinations()
	wantCurrent(t, "before", held, true)
	older, err := OpenDestinations(root) // of another size than this release's
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = older.Close() }()
	wantCurrent(t, "opened before", older, true)

	complete := filepath.Join(root, nodeDir, captureMapComplete)
	if err := startAnew(complete); err != nil { // an agent dies here
		t.Fatal(err)
	}
	wantCurrent(t, "half-way", held, false)
	if _, err := OpenDestinations(root); !errors.Is(err, ErrNotLoaded) {
		t.Errorf("half-way: got %v, want %v", err, ErrNotLoaded)
	}
	now, err := LoadNode(root)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = now.Close() }()
	wantCurrent(t, "after", older, false)
	next, err := OpenDestinations(root)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = next.Close() }()
	wantCurrent(t, "opened again", next, true)
	if err := next.SetComplete(true); err != nil {
		t.Fatal(err)
	}
	if got, err := now.Destinations().Complete(); err != nil || !got {
		t.Errorf("complete: got %v, %v, want true", got, err)
	}
}

func wantCurrent(t *testing.T, when string, d *Destinations, want bool) {
	t.Helper()
	if got, err := d.IsCurrent(); err != nil || got != want {
		t.Errorf("%s: current: got %v, %v, want %v", when, got, err, want)
	}
}

// million are so many addresses, half of them IPv6.
func million() []netip.Addr {
	all := make([]netip.Addr, 0, 1<<20)
	for i := range cap(all) {
		b := [16]byte{0xfd, 1, 12: byte(i >> 24), 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)}
		if i%2 == 0 {
			b = [16]byte{10: 0xff, 11: 0xff, 12: 10, 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)}
		}
		all = append(all, netip.AddrFrom16(b).Unmap())
	}
	return all
}

func TestAMillionDestinationsFit(t *testing.T) {
	w := newWorld(t)
	d, all := w.Destinations(), million()
	if err := d.Add(all...); err != nil {
		t.Fatal(err)
	}
	got, err := d.List()
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(all, netip.Addr.Compare)
	if !slices.Equal(got, all) {
		t.Errorf("got %d addresses, want the %d added", len(got), len(all))
	}
	if err := d.SetComplete(true); err != nil {
		t.Fatal(err)
	}
	wantError(t, d.Add(netip.MustParseAddr("192.0.2.1")), "add destination 192.0.2.1")
	if got, err := d.Complete(); got || err != nil {
		t.Errorf("complete after an overflow: got %v, %v, want false", got, err)
	}
	if err := d.Remove(all...); err != nil {
		t.Error(err)
	}
}

// BenchmarkDestinations is a million addresses, written and read, and what they take.
func BenchmarkDestinations(b *testing.B) {
	testutil.RequireRoot(b)
	n, err := LoadNode(filepath.Join(testutil.BPFFS(b), "sluice", "v1"))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = n.Close() }()
	d, all := n.Destinations(), million()
	b.Run("add", func(b *testing.B) {
		for b.Loop() {
			if err := d.Add(all...); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(len(all))*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
		if info, err := n.maps.Destinations.Info(); err == nil {
			if bytes, ok := info.Memlock(); ok {
				b.ReportMetric(float64(bytes)/(1<<20), "MiB")
			}
		}
	})
	b.Run("list", func(b *testing.B) {
		for b.Loop() {
			if _, err := d.List(); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// TestDestinationThatDoesNotFitIsCaptured: an overflow of the set must not turn into a bypass.
func TestDestinationThatDoesNotFitIsCaptured(t *testing.T) {
	b := newBench(t, settings{})
	small, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 16, ValueSize: 1, MaxEntries: 1, Flags: unix.BPF_F_NO_PREALLOC})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = small.Close() }()
	d := Destinations{set: small, complete: b.node.maps.Complete}
	if err := d.SetComplete(true); err != nil {
		t.Fatal(err)
	}
	err = d.Add(netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"))
	wantError(t, err, "add destination 10.0.0.2")
	if got, err := d.Complete(); got || err != nil {
		t.Errorf("complete: got %v, %v, want false", got, err)
	}
}
