// SPDX-License-Identifier: Apache-2.0

package inpod

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Avoid reports a source that a delivery must not have.
//
// A delivery speaks from its client's address. If the client has a connection of its own to the same port of the pod,
// accepted by ztunnel, from the very port that the delivery got, then the kernel takes the delivery for a part of that
// connection: it looks for established connections before it asks for a listener. Nothing in choosing a port prevents
// it, for the two sockets are each other's mirror image and not alike.
type Avoid func(source netip.AddrPort) bool

var errAvoided = errors.New("no source port that the client does not use itself")

// Deliveries get their ports from above the range of which clients' kernels take theirs (ip_local_port_range, 32768 to
// 60999), so that a client that connects later does not meet a delivery's port either. Only when that fails, for a
// client with thousands of connections, the kernel chooses.
const (
	deliveryPort  = 61000
	deliveryTries = 8
	kernelTries   = 4 // of deliveryTries, the last ones
)

// deliver connects to to from inside the pod with the address from, whoever owns it.
func (p *Pod) deliver(ctx context.Context, from netip.Addr, to netip.AddrPort, avoid Avoid) (*net.TCPConn, error) {
	var err error
	for try := range deliveryTries {
		var conn *net.TCPConn
		conn, err = p.dialOnce(ctx, netip.AddrPortFrom(from, sourcePort(from, try, avoid)), to, avoid)
		if err == nil {
			return conn, nil
		}
		if !errors.Is(err, errAvoided) && !errors.Is(err, unix.EADDRINUSE) && !errors.Is(err, unix.EADDRNOTAVAIL) {
			break
		}
	}
	return nil, dialError(to, err)
}

// sourcePort is 0 where the kernel is to choose.
func sourcePort(from netip.Addr, try int, avoid Avoid) uint16 {
	if try >= deliveryTries-kernelTries {
		return 0
	}
	port := uint16(deliveryPort + rand.IntN(1<<16-deliveryPort))
	if avoid(netip.AddrPortFrom(from, port)) {
		return 0
	}
	return port
}

// localAddr is the socket's own address, or the zero value.
func localAddr(fd int) netip.AddrPort {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}
