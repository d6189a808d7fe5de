// SPDX-License-Identifier: Apache-2.0

package inpod

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// answers sends a pod's answers, from addresses that are not the pod's. The sockets are raw ones: one bound to port 53
// of a name server's address would take that port from an app that wants it on all addresses, and would not get it
// where the app has it already.
type answers struct {
	mu     sync.Mutex
	closed bool
	fds    map[int]int // by family
}

// SendUDP sends a datagram to a socket of the pod's, so that it comes from an address, whoever owns it. It never waits:
// there is no room for a datagram that does not fit.
func (p *Pod) SendUDP(ctx context.Context, from, to netip.AddrPort, data []byte) error {
	packet, err := datagram(from, to, data)
	if err != nil {
		return err
	}
	p.answers.mu.Lock()
	defer p.answers.mu.Unlock()
	fd, err := p.answerSocketLocked(ctx, familyOf(to.Addr()))
	if err != nil {
		return err
	}
	// The port is in the packet; raw IPv6 sockets refuse another.
	return os.NewSyscallError("sendto", unix.Sendto(fd, packet, 0, sockaddr(netip.AddrPortFrom(to.Addr(), 0))))
}

func (p *Pod) answerSocketLocked(ctx context.Context, family int) (int, error) {
	if p.answers.closed {
		return -1, net.ErrClosed
	}
	if fd, ok := p.answers.fds[family]; ok {
		return fd, nil
	}
	fd, err := p.sockets.open(ctx, p.ns, family, unix.SOCK_RAW)
	if err != nil {
		return -1, err
	}
	if p.answers.fds == nil {
		p.answers.fds = map[int]int{}
	}
	p.answers.fds[family] = fd
	return fd, nil
}

func (a *answers) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	for _, fd := range a.fds {
		_ = unix.Close(fd)
	}
	a.fds = nil
}

const (
	udpHeader = 8
	ip4Header = 20
	ip6Header = 40
	hopLimit  = 64
)

// datagram makes the packet. Of an IPv4 header the kernel fills in length, id and checksum.
func datagram(from, to netip.AddrPort, data []byte) ([]byte, error) {
	length, header := udpHeader+len(data), ip4Header
	if !to.Addr().Is4() {
		header = ip6Header
	}
	if from.Addr().Is4() != to.Addr().Is4() || header+length > 1<<16-1 {
		return nil, fmt.Errorf("no datagram of %d bytes from %s to %s", len(data), from, to)
	}
	p := make([]byte, header, header+length)
	if to.Addr().Is4() {
		p[0], p[8], p[9] = 4<<4|ip4Header/4, hopLimit, unix.IPPROTO_UDP
		copy(p[12:], from.Addr().AsSlice())
		copy(p[16:], to.Addr().AsSlice())
	} else {
		p[0], p[6], p[7] = 6<<4, unix.IPPROTO_UDP, hopLimit
		binary.BigEndian.PutUint16(p[4:], uint16(length))
		copy(p[8:], from.Addr().AsSlice())
		copy(p[24:], to.Addr().AsSlice())
	}
	p = binary.BigEndian.AppendUint16(p, from.Port())
	p = binary.BigEndian.AppendUint16(p, to.Port())
	p = binary.BigEndian.AppendUint16(p, uint16(length))
	p = append(append(p, 0, 0), data...)
	binary.BigEndian.PutUint16(p[header+6:], checksum(from.Addr(), to.Addr(), p[header:]))
	return p, nil
}

// checksum is UDP's, over the pseudo header too: RFC 768, RFC 8200 section 8.1.
func checksum(from, to netip.Addr, segment []byte) uint16 {
	sum := uint32(unix.IPPROTO_UDP) + uint32(len(segment))
	for _, part := range [][]byte{from.AsSlice(), to.AsSlice(), segment} {
		for ; len(part) > 1; part = part[2:] {
			sum += uint32(binary.BigEndian.Uint16(part))
		}
		if len(part) == 1 {
			sum += uint32(part[0]) << 8
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	if sum == 0xffff {
		return 0xffff // 0 means that there is none
	}
	return ^uint16(sum)
}
