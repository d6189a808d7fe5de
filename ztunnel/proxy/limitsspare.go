// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// spare is a descriptor kept to be given up when there is no other: with it a waiting connection is accepted to be reset,
// which its client learns at once, rather than to wait for what may never come.
type spare struct {
	mu     sync.Mutex
	file   *os.File // nil while it could not be had
	closed bool
}

func (s *spare) init() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.openLocked()
}

func (s *spare) openLocked() {
	if s.closed || s.file != nil {
		return
	}
	if f, err := os.Open(os.DevNull); err == nil {
		s.file = f
	}
}

func (s *spare) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.file != nil {
		_ = s.file.Close()
		s.file = nil
	}
}

// refuseAtOnce is how many waiting connections one shortage refuses before it is looked at again.
const refuseAtOnce = 64

// refuse resets connections that wait at ln, and returns whose they were.
func (s *spare) refuse(ln *net.TCPListener) (from []netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	raw, err := ln.SyscallConn()
	if err != nil {
		return nil
	}
	if s.file != nil {
		_ = s.file.Close()
		s.file = nil
	}
	_ = raw.Control(func(fd uintptr) {
		for range refuseAtOnce {
			client, ok := resetNext(int(fd))
			if !ok {
				return
			}
			from = append(from, client)
		}
	})
	s.openLocked()
	return from
}

// resetNext accepts and resets one connection if one waits. The listener does not block.
func resetNext(listener int) (client netip.AddrPort, ok bool) {
	fd, from, err := unix.Accept4(listener, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	if err != nil {
		return netip.AddrPort{}, false
	}
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	_ = unix.Close(fd)
	switch from := from.(type) {
	case *unix.SockaddrInet4:
		client = netip.AddrPortFrom(netip.AddrFrom4(from.Addr), uint16(from.Port))
	case *unix.SockaddrInet6:
		client = netip.AddrPortFrom(netip.AddrFrom16(from.Addr).Unmap(), uint16(from.Port))
	}
	return client, true
}
