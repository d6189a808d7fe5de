// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
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
