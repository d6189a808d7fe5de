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

const (
	portOutbound = 15001
	portInbound  = 15006
	portHBONE    = 15008
)

// backlog is how many connections may wait while no ztunnel accepts; the kernel cuts it to the pod's somaxconn.
const backlog = 4096

// addresses says where each slot's socket is bound. Slots that are not listed here have no listener in this release.
var addresses = map[bpf.Slot]netip.AddrPort{
	bpf.SlotOutbound4: netip.AddrPortFrom(hidden4, portOutbound),
	bpf.SlotOutbound6: netip.AddrPortFrom(hidden6, portOutbound),
	bpf.SlotInbound4:  netip.AddrPortFrom(hidden4, portInbound),
	bpf.SlotInbound6:  netip.AddrPortFrom(hidden6, portInbound),
	bpf.SlotHBONE4:    netip.AddrPortFrom(hidden4, portHBONE),
	bpf.SlotHBONE6:    netip.AddrPortFrom(hidden6, portHBONE),
}

// errNoFamily reports that the namespace does not have the address family. That is no failure: its slots stay empty.
var errNoFamily = errors.New("address family not available")

// listen makes one listener in the calling thread's network namespace, tagged before it is bound so that no connection
// is ever accepted by an untagged one.
func listen(at netip.AddrPort, tag func(fd int) error) (_ int, err error) {
	family, level, transparent, freebind := unix.AF_INET, unix.IPPROTO_IP, unix.IP_TRANSPARENT, unix.IP_FREEBIND
	if at.Addr().Is6() {
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
	err = unix.Bind(fd, sockaddr(at))
	if errors.Is(err, unix.EADDRINUSE) {
		// A ztunnel holds the listener that this one is to replace. The port is as hidden as the address: any will do.
		err = unix.Bind(fd, sockaddr(netip.AddrPortFrom(at.Addr(), 0)))
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
