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

// HiddenAddrs lists them.
func HiddenAddrs() []netip.Addr { return []netip.Addr{hidden4, hidden6} }

// The ports mean nothing: an accepted socket has the original destination's. But an application that listens on all
// addresses collides with ours on the same port, so ours are such as no application wants; which of them, is what is
// free.
const (
	firstPort = 1
	lastPort  = 30
)

// backlog is how many connections may wait while no ztunnel accepts; the kernel cuts it to the pod's somaxconn.
const backlog = 4096

// hidden is where a slot's socket is bound.
func hidden(slot bpf.Slot) netip.Addr {
	if slot.IsIPv6() {
		return hidden6
	}
	return hidden4
}

// errNoFamily reports that the namespace does not have the address family. That is no failure: its slots stay empty.
var errNoFamily = errors.New("address family not available")

// listen makes one listener in the calling thread's network namespace, tagged before it is bound so that no connection
// is ever accepted by an untagged one. That of queries over UDP is a socket that is bound, and says where each was to go.
func listen(slot bpf.Slot, tag func(fd int) error) (_ int, err error) {
	at, family, kind, protocol := hidden(slot), unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_TCP
	if slot.IsIPv6() {
		family = unix.AF_INET6
	}
	if slot.IsUDP() {
		kind, protocol = unix.SOCK_DGRAM, unix.IPPROTO_UDP
	}
	// Plain TCP: a SOCKMAP refuses MPTCP sockets.
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
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
	for _, o := range options(slot) {
		if err := unix.SetsockoptInt(fd, o.level, o.value, 1); err != nil {
			return -1, fmt.Errorf("set %s: %w", o.name, err)
		}
	}
	err = bindHidden(fd, at)
	if errors.Is(err, unix.EADDRNOTAVAIL) && slot.IsIPv6() {
		return -1, errNoFamily
	}
	if err != nil {
		return -1, fmt.Errorf("bind %s: %w", at, err)
	}
	if slot.IsUDP() {
		return fd, nil
	}
	if err := unix.Listen(fd, backlog); err != nil {
		return -1, fmt.Errorf("listen %s: %w", at, err)
	}
	return fd, nil
}

type option struct {
	name         string
	level, value int
}

// options are those that a slot's socket has switched on before it is bound.
func options(slot bpf.Slot) []option {
	var set []option
	if !slot.IsUDP() { // UDP sockets that have it may share a port, which a listener of before holds.
		set = append(set, option{"SO_REUSEADDR", unix.SOL_SOCKET, unix.SO_REUSEADDR})
	}
	if slot.IsIPv6() {
		set = append(set, option{"IPV6_TRANSPARENT", unix.SOL_IPV6, unix.IPV6_TRANSPARENT},
			option{"IPV6_FREEBIND", unix.SOL_IPV6, unix.IPV6_FREEBIND}, option{"IPV6_V6ONLY", unix.SOL_IPV6, unix.IPV6_V6ONLY})
	} else {
		set = append(set, option{"IP_TRANSPARENT", unix.SOL_IP, unix.IP_TRANSPARENT}, option{"IP_FREEBIND", unix.SOL_IP, unix.IP_FREEBIND})
	}
	switch slot {
	case bpf.SlotDNSUDP4:
		set = append(set, option{"IP_RECVORIGDSTADDR", unix.SOL_IP, unix.IP_RECVORIGDSTADDR})
	case bpf.SlotDNSUDP6:
		set = append(set, option{"IPV6_RECVORIGDSTADDR", unix.SOL_IPV6, unix.IPV6_RECVORIGDSTADDR})
	}
	return set
}

// bindHidden takes the first port that is free. Taken are those of the other slots, and those of a listener that a
// ztunnel holds and this one is to replace.
func bindHidden(fd int, at netip.Addr) error {
	err := error(unix.EADDRINUSE)
	for port := uint16(firstPort); port <= lastPort && errors.Is(err, unix.EADDRINUSE); port++ {
		err = unix.Bind(fd, sockaddr(netip.AddrPortFrom(at, port)))
	}
	return err
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
