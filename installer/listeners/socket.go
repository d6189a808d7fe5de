// SPDX-License-Identifier: Apache-2.0

package listeners

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/bpf"
)

// Where the hidden listeners are bound. No interface of a pod can own these addresses: TEST-NET-3 (RFC 5737) and the
// discard prefix (RFC 6666). dispatch chooses the sockets by slot, so no packet ever has to carry them.
var (
	hidden4 = netip.MustParseAddr("203.0.113.1")
	hidden6 = netip.MustParseAddr("100::1")
)

// The ports mean nothing: an accepted socket has the original destination's. But an application that listens on all
// addresses collides with ours on the same port, so ours are such as no application wants; which of them, is what is
// free.
const (
	firstPort = 1
	lastPort  = 18
)

// backlog is how many connections may wait while no ztunnel accepts; the kernel cuts it to the pod's somaxconn.
const backlog = 4096

// addresses says where each slot's socket is bound. Slots that are not listed here have no listener in this release.
var addresses = map[bpf.Slot]netip.Addr{
	bpf.SlotOutbound4: hidden4,
	bpf.SlotOutbound6: hidden6,
	bpf.SlotInbound4:  hidden4,
	bpf.SlotInbound6:  hidden6,
	bpf.SlotHBONE4:    hidden4,
	bpf.SlotHBONE6:    hidden6,
}

// errNoFamily reports that the namespace does not have the address family. That is no failure: its slots stay empty.
var errNoFamily = errors.New("address family not available")

// listen makes one listener in the calling thread's network namespace, tagged before it is bound so that no connection
// is ever accepted by an untagged one.
func listen(at netip.Addr, tag func(fd int) error) (_ int, err error) {
	family, level, transparent, freebind := unix.AF_INET, unix.IPPROTO_IP, unix.IP_TRANSPARENT, unix.IP_FREEBIND
	if at.Is6() {
		family, level, transparent, freebind = unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_TRANSPARENT, unix.IPV6_FREEBIND
	}
	// Plain TCP: a SOCKMAP refuses MPTCP sockets.
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		return -1, errNoFamily
	}
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
		}
	}()
	if err := tag(fd); err != nil {
		return -1, fmt.Errorf("tag socket: %w", err)
	}
	options := []struct {
		name         string
		level, value int
	}{
		{"SO_REUSEADDR", unix.SOL_SOCKET, unix.SO_REUSEADDR},
		{"IP_TRANSPARENT", level, transparent},
		{"IP_FREEBIND", level, freebind},
	}
	if family == unix.AF_INET6 {
		options = append(options, struct {
			name         string
			level, value int
		}{"IPV6_V6ONLY", unix.IPPROTO_IPV6, unix.IPV6_V6ONLY})
	}
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.value, 1); err != nil {
			return -1, fmt.Errorf("set %s: %w", o.name, err)
		}
	}
	// Taken are the ports of the other slots, and those of a listener that a ztunnel holds and this one is to replace.
	err = unix.EADDRINUSE
	for port := uint16(firstPort); port <= lastPort && errors.Is(err, unix.EADDRINUSE); port++ {
		err = unix.Bind(fd, sockaddr(netip.AddrPortFrom(at, port)))
	}
	if errors.Is(err, unix.EADDRNOTAVAIL) && family == unix.AF_INET6 {
		return -1, errNoFamily
	}
	if err != nil {
		return -1, fmt.Errorf("bind %s: %w", at, err)
	}
	if err := unix.Listen(fd, backlog); err != nil {
		return -1, fmt.Errorf("listen %s: %w", at, err)
	}
	return fd, nil
}

func sockaddr(at netip.AddrPort) unix.Sockaddr {
	if at.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}
	}
	return &unix.SockaddrInet6{Addr: at.Addr().As16(), Port: int(at.Port())}
}

// cookieOf identifies the socket itself, whoever holds a descriptor of it.
func cookieOf(fd int) (uint64, error) {
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("read socket cookie: %w", err)
	}
	return cookie, nil
}
