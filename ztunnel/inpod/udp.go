// SPDX-License-Identifier: Apache-2.0

package inpod

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// DialUDP returns a UDP socket inside the pod that hears only to, from a port that the kernel chooses at random.
func (p *Pod) DialUDP(ctx context.Context, to netip.AddrPort) (*net.UDPConn, error) {
	conn, err := p.udp(ctx, to.Addr(), func(fd int) error {
		return os.NewSyscallError("connect", unix.Connect(fd, sockaddr(to)))
	})
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "udp", Addr: net.UDPAddrFromAddrPort(to), Err: err}
	}
	return conn, nil
}

// SpeakAs returns a UDP socket inside the pod that sends from at, whoever owns it: an answer must come from where the
// question went.
func (p *Pod) SpeakAs(ctx context.Context, at netip.AddrPort) (*net.UDPConn, error) {
	conn, err := p.udp(ctx, at.Addr(), func(fd int) error {
		level, transparent := unix.SOL_IP, unix.IP_TRANSPARENT
		if !at.Addr().Is4() {
			level, transparent = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
		}
		err := errors.Join(
			unix.SetsockoptInt(fd, level, transparent, 1),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), // another ztunnel may answer from it too
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 0),    // nobody reads
		)
		if err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
		return os.NewSyscallError("bind", unix.Bind(fd, sockaddr(at)))
	})
	if err != nil {
		return nil, &net.OpError{Op: "bind", Net: "udp", Addr: net.UDPAddrFromAddrPort(at), Err: err}
	}
	return conn, nil
}

func (p *Pod) udp(ctx context.Context, a netip.Addr, setUp func(fd int) error) (*net.UDPConn, error) {
	fd, err := p.sockets.open(ctx, p.ns, familyOf(a), unix.SOCK_DGRAM)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "udp")
	defer func() { _ = f.Close() }() // FilePacketConn has its own copy.
	if err := setUp(fd); err != nil {
		return nil, err
	}
	conn, err := net.FilePacketConn(f)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UDPConn), nil
}

var errNoDestination = errors.New("datagram without its original destination")

// DestinationSpace is room for the control messages of a datagram, see [Destination].
const DestinationSpace = 128

// Destination is where a datagram was to go before it was captured; ip(7), IP_ORIGDSTADDR.
func Destination(control []byte) (netip.AddrPort, error) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return netip.AddrPort{}, err
	}
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_ORIGDSTADDR && len(m.Data) >= unix.SizeofSockaddrInet4:
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte(m.Data[4:8])), binary.BigEndian.Uint16(m.Data[2:])), nil
		case m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_ORIGDSTADDR && len(m.Data) >= unix.SizeofSockaddrInet6:
			return netip.AddrPortFrom(netip.AddrFrom16([16]byte(m.Data[8:24])), binary.BigEndian.Uint16(m.Data[2:])), nil
		}
	}
	return netip.AddrPort{}, errNoDestination
}
