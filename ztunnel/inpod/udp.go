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
	failed := func(err error) error {
		return &net.OpError{Op: "dial", Net: "udp", Addr: net.UDPAddrFromAddrPort(to), Err: err}
	}
	fd, err := p.sockets.open(ctx, p.ns, familyOf(to.Addr()), unix.SOCK_DGRAM)
	if err != nil {
		return nil, failed(err)
	}
	f := os.NewFile(uintptr(fd), "udp")
	defer func() { _ = f.Close() }() // FilePacketConn has its own copy.
	if err := unix.Connect(fd, sockaddr(to)); err != nil {
		return nil, failed(os.NewSyscallError("connect", err))
	}
	conn, err := net.FilePacketConn(f)
	if err != nil {
		return nil, failed(err)
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
