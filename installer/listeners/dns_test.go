// SPDX-License-Identifier: Apache-2.0

package listeners

import (
	"errors"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/bpf"
)

func TestSocketsOfQueriesComeAndGoWithTheSetting(t *testing.T) {
	_, ns := namespace(t)
	s, m := filled(t, ns)
	s.CaptureDNS(true)
	if err := s.Repair(ns, untagged, m); err != nil {
		t.Fatal(err)
	}
	if got := s.Held(); !slices.Equal(got, Names(true)) || len(got) != 10 {
		t.Fatalf("held %v, want %v", got, Names(true))
	}
	_ = s.Use(func(fds map[bpf.Slot]int) error {
		for _, slot := range bpf.DNSSlots() {
			want, level, opt := unix.SOCK_STREAM, unix.SOL_IP, unix.IP_TRANSPARENT
			if slot.IsUDP() {
				want, opt = unix.SOCK_DGRAM, unix.IP_RECVORIGDSTADDR
			}
			if slot.IsIPv6() && slot.IsUDP() {
				level, opt = unix.SOL_IPV6, unix.IPV6_RECVORIGDSTADDR
			} else if slot.IsIPv6() {
				level, opt = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
			}
			kind, err := unix.GetsockoptInt(fds[slot], unix.SOL_SOCKET, unix.SO_TYPE)
			on, oerr := unix.GetsockoptInt(fds[slot], level, opt)
			if err := errors.Join(err, oerr); err != nil || kind != want || on != 1 {
				t.Errorf("%v: type %d, option %d, %v", slot, kind, on, err)
			}
		}
		return nil
	})
	names, fds, err := s.Duplicate()
	if err != nil {
		t.Fatal(err)
	}
	offered := map[bpf.Slot]int{}
	for i, slot := range names {
		defer func() { _ = unix.Close(fds[i]) }()
		offered[slot] = fds[i]
	}
	s.CaptureDNS(false)
	if got := s.Held(); !slices.Equal(got, Names(false)) {
		t.Errorf("held %v after the setting went, want %v", got, Names(false))
	}
	if got := s.Adopt(m, offered); len(got) != 0 {
		t.Errorf("took back %v that it is not to have", got)
	}
	s.CaptureDNS(true)
	if got := s.Adopt(m, offered); !slices.Equal(got, bpf.DNSSlots()) {
		t.Errorf("adopted %v, want %v", got, bpf.DNSSlots())
	}
}

// A new agent makes sockets beside those that a ztunnel of before still holds: never on the same port, where the kernel
// would share the datagrams out among them.
func TestUDPSocketsNeverShareAPort(t *testing.T) {
	_, ns := namespace(t)
	ports := map[int]bool{}
	for range 3 {
		var s Set
		s.CaptureDNS(true)
		if err := s.Open(ns, untagged); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		_ = s.Use(func(fds map[bpf.Slot]int) error {
			sa, err := unix.Getsockname(fds[bpf.SlotDNSUDP4])
			if err != nil {
				t.Fatal(err)
			}
			port := sa.(*unix.SockaddrInet4).Port
			if ports[port] {
				t.Errorf("port %d twice", port)
			}
			ports[port] = true
			return nil
		})
	}
}
