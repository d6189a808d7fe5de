// SPDX-License-Identifier: Apache-2.0

package inpod

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// PortDNS is where the rules of a foreign agent redirect a pod's queries to, on loopback. Ambient section 1.3.
const PortDNS = 15053

// ListenInPodForDNS is [ListenInPod] with sockets for the queries that a foreign agent's rules redirect. Where a datagram
// was to go is lost by that, and its answer has to come from the socket.
func ListenInPodForDNS(ctx context.Context, p *Pod, held *Listeners) (*Listeners, error) {
	l, err := ListenInPod(ctx, p, held)
	if err != nil || l == held {
		return l, err
	}
	for _, loopback := range []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()} {
		if loopback.Is6() && p.sockets.options.IPv4Only {
			continue
		}
		err := p.listenDNS(ctx, l, netip.AddrPortFrom(loopback, PortDNS))
		if loopback.Is6() && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)) {
			continue // a pod without IPv6
		}
		if err != nil {
			l.Close()
			return nil, fmt.Errorf("listen for queries: %w", err)
		}
	}
	return l, nil
}

// listenDNS adds both sockets to l, or none.
func (p *Pod) listenDNS(ctx context.Context, l *Listeners, at netip.AddrPort) error {
	udp, err := p.listenUDP(ctx, at)
	if err != nil {
		return err
	}
	tcp, err := p.listenOn(ctx, at)
	if err != nil {
		_ = udp.Close()
		return err
	}
	l.DNSUDP, l.DNSTCP = append(l.DNSUDP, udp), append(l.DNSTCP, tcp)
	return nil
}

func (p *Pod) listenUDP(ctx context.Context, at netip.AddrPort) (*net.UDPConn, error) {
	fd, err := p.sockets.open(ctx, p.ns, familyOf(at.Addr()), unix.SOCK_DGRAM)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "udp")
	defer func() { _ = f.Close() }() // FilePacketConn has its own copy.
	// Not SO_REUSEADDR, with which the last to come gets all datagrams of a port.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, btoi(!p.sockets.options.ExclusivePorts)); err != nil {
		return nil, os.NewSyscallError("setsockopt SO_REUSEPORT", err)
	}
	if err := unix.Bind(fd, sockaddr(at)); err != nil {
		return nil, os.NewSyscallError("bind "+at.String(), err)
	}
	conn, err := net.FilePacketConn(f)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UDPConn), nil
}
