// SPDX-License-Identifier: Apache-2.0

package listeners

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/internal/netns"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// slots is a pod's map in memory: like the kernel's it forgets a socket that closed, which the test says by close.
type slots map[bpf.Slot]uint64

func (s slots) SetListener(slot bpf.Slot, fd int) error {
	cookie, err := cookieOf(fd)
	s[slot] = cookie
	return err
}

func (s slots) ListenerCookie(slot bpf.Slot) (uint64, bool, error) {
	cookie, ok := s[slot]
	return cookie, ok, nil
}

func untagged(int) error { return nil }

func namespace(t *testing.T) (*testutil.NS, *netns.NS) {
	t.Helper()
	testutil.RequireRoot(t)
	n := testutil.NetNS(t, "pod")
	ns, err := netns.Open(n.Path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	return n, ns
}

func filled(t *testing.T, ns *netns.NS) (*Set, slots) {
	t.Helper()
	s, m := &Set{}, slots{}
	if err := errors.Join(s.Open(ns, untagged), s.Install(m)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s, m
}

func TestEverySlotGetsATaggedTransparentListenerThatNobodyCanReach(t *testing.T) {
	n, ns := namespace(t)
	var tagged atomic.Int32
	s := &Set{}
	t.Cleanup(s.Close)
	err := s.Open(ns, func(fd int) error {
		tagged.Add(1)
		if on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || on != 0 {
			t.Errorf("tagged when listening already: %d, %v", on, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Held(); !slices.Equal(got, Names(false)) || int(tagged.Load()) != len(got) || len(got) != 6 {
		t.Errorf("held %v, %d tagged, want all of %v", got, tagged.Load(), Names(false))
	}
	_ = s.Use(func(fds map[bpf.Slot]int) error {
		for slot, fd := range fds {
			level, opt := unix.IPPROTO_IP, unix.IP_TRANSPARENT
			if slot.IsIPv6() {
				level, opt = unix.IPPROTO_IPV6, unix.IPV6_TRANSPARENT
			}
			if on, err := unix.GetsockoptInt(fd, level, opt); err != nil || on != 1 {
				t.Errorf("%v: transparent %d, %v", slot, on, err)
			}
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if c, err := n.Dial(ctx, "tcp", netip.AddrPortFrom(hidden4, firstPort).String()); err == nil {
		_ = c.Close()
		t.Error("the hidden listener can be connected to by its address")
	}
}

func TestNamespaceWithoutIPv6GetsIPv4Only(t *testing.T) {
	n, ns := namespace(t)
	n.Sysctl(t, "net.ipv6.conf.all.disable_ipv6", "1")
	s, m := filled(t, ns)
	for _, slot := range []bpf.Slot{bpf.SlotOutbound4, bpf.SlotInbound4, bpf.SlotHBONE4} {
		if _, ok := m[slot]; !ok {
			t.Errorf("slot %v is empty", slot)
		}
	}
	// Whether IPv6 sockets can be bound with the sysctl set is the kernel's business: a pod without IPv6 has no use for them.
	if len(s.Held()) < 3 {
		t.Errorf("held: %v", s.Held())
	}
}

func TestFailureLeavesNoSocket(t *testing.T) {
	_, ns := namespace(t)
	s := &Set{}
	before := openFDs(t)
	n := 0
	err := s.Open(ns, func(int) error {
		if n++; n == 4 {
			return errors.New("map is full")
		}
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "tag socket: map is full") {
		t.Errorf("Open: %v", err)
	}
	if after := openFDs(t); after != before || len(s.Held()) != 0 {
		t.Errorf("descriptors: %d before, %d after; held %v", before, after, s.Held())
	}
}

func openFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestDuplicateOutlivesTheSet(t *testing.T) {
	_, ns := namespace(t)
	s, m := filled(t, ns)
	names, fds, err := s.Duplicate()
	if err != nil || !slices.Equal(names, Names(false)) {
		t.Fatalf("Duplicate: %v, %v", names, err)
	}
	s.Close()
	for i, fd := range fds {
		if cookie, err := cookieOf(fd); err != nil || cookie != m[names[i]] {
			t.Errorf("%v: cookie %d, %v, want %d", names[i], cookie, err, m[names[i]])
		}
		_ = unix.Close(fd)
	}
}

func TestAdoptTakesOnlyTheSocketInTheSlot(t *testing.T) {
	n, ns := namespace(t)
	old, m := filled(t, ns)
	names, fds, err := old.Duplicate()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}()
	old.Close()
	offered := map[bpf.Slot]int{}
	for i, slot := range names {
		offered[slot] = fds[i]
	}
	foreign, err := n.Listen(t, "tcp", "127.0.0.1:0").(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	offered[bpf.SlotInbound4] = int(foreign.Fd())                                                       // Not what is in the slot.
	offered[bpf.SlotHBONE4], offered[bpf.SlotHBONE6] = offered[bpf.SlotHBONE6], offered[bpf.SlotHBONE4] // Swapped.
	delete(m, bpf.SlotInbound6)                                                                         // Slot empty.
	want := []bpf.Slot{bpf.SlotOutbound4, bpf.SlotOutbound6}
	s := &Set{}
	t.Cleanup(s.Close)
	if got := s.Adopt(m, offered); !slices.Equal(got, want) {
		t.Errorf("adopted %v, want %v", got, want)
	}
	if got := s.Adopt(m, offered); len(got) != 0 {
		t.Errorf("adopted again: %v", got)
	}
}

func TestRepairLeavesForeignSocketsToAdopt(t *testing.T) {
	_, ns := namespace(t)
	old, m := filled(t, ns)
	s := &Set{}
	t.Cleanup(s.Close)
	delete(m, bpf.SlotInbound4)
	old.mu.Lock()
	_ = unix.Close(old.fds[bpf.SlotInbound4])
	delete(old.fds, bpf.SlotInbound4)
	old.mu.Unlock()
	if err := s.Repair(ns, untagged, m); err != nil {
		t.Fatal(err)
	}
	if got := s.Held(); !slices.Equal(got, []bpf.Slot{bpf.SlotInbound4}) {
		t.Errorf("made %v, want only what was empty", got)
	}
	// Whoever asks without offering gets new ones all the same, though the old hold their addresses still.
	if err := errors.Join(s.Open(ns, untagged), s.Install(m)); err != nil {
		t.Fatal(err)
	}
	if got := s.Held(); !slices.Equal(got, Names(false)) {
		t.Errorf("held %v, want all", got)
	}
}

func TestRepairPutsHeldListenersBack(t *testing.T) {
	_, ns := namespace(t)
	s, m := filled(t, ns)
	want := m[bpf.SlotOutbound4]
	m[bpf.SlotOutbound4] = 1
	if err := s.Repair(ns, untagged, m); err != nil || m[bpf.SlotOutbound4] != want {
		t.Errorf("Repair: %v, slot holds %d, want %d", err, m[bpf.SlotOutbound4], want)
	}
}

func TestClosedSetStaysClosed(t *testing.T) {
	_, ns := namespace(t)
	s, m := filled(t, ns)
	s.LetGo(func() bool { return true })
	if len(s.Held()) == 0 {
		t.Error("let go of what is needed")
	}
	s.LetGo(func() bool { return false })
	if err := s.Open(ns, untagged); err != nil || len(s.Held()) != 6 {
		t.Errorf("after LetGo: %v, held %v", err, s.Held())
	}
	s.Close()
	if err := s.Open(ns, untagged); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if got := s.Adopt(m, map[bpf.Slot]int{bpf.SlotInbound4: 0}); len(got) != 0 {
		t.Errorf("adopted %v after Close", got)
	}
}
