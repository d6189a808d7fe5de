// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// segment is what a frame tells of its TCP segment.
type segment struct {
	src, dst netip.AddrPort // ports are 0 if unreadable
	syn, ack bool
	payload  int    // bytes; of a frame beyond 64 KiB at least 1
	head     []byte // the first bytes of the payload, as far as they were read
	// unreadable: it is TCP, or may be, but a fragment, cut short, or behind headers that are not followed.
	unreadable bool
}

const (
	ethernetBytes = 14
	ipv6Bytes     = 40
	tcpBytes      = 20
	flagSYN       = 0x02
	flagACK       = 0x10
)

// parse reads an Ethernet frame of which b may be only the beginning; wire is its whole length. It returns false if no
// TCP can be in it. Whatever it cannot read to the end, but might be TCP, counts as unreadable: a harness that skips what
// it does not understand would miss the clever leaks.
func parse(b []byte, wire int) (s segment, ok bool) {
	if len(b) < ethernetBytes {
		return s, false
	}
	kind, at := binary.BigEndian.Uint16(b[12:]), ethernetBytes
	for kind == unix.ETH_P_8021Q || kind == unix.ETH_P_8021AD {
		if len(b) < at+4 {
			return segment{unreadable: true}, true
		}
		kind, at = binary.BigEndian.Uint16(b[at+2:]), at+4
	}
	switch kind {
	case unix.ETH_P_IP:
		return parseIPv4(b[at:], wire-at)
	case unix.ETH_P_IPV6:
		return parseIPv6(b[at:], wire-at)
	}
	return s, false
}

func parseIPv4(b []byte, wire int) (s segment, ok bool) {
	if len(b) < 20 {
		return segment{unreadable: true}, true
	}
	if b[9] != unix.IPPROTO_TCP {
		return s, false
	}
	s.src = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[12:16])), 0)
	s.dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[16:20])), 0)
	header := int(b[0]&0xf) * 4
	total := int(binary.BigEndian.Uint16(b[2:]))
	if total == 0 { // BIG TCP
		total = wire
	}
	const fragment = 0x3fff // more fragments, and the offset
	if binary.BigEndian.Uint16(b[6:])&fragment != 0 || header < 20 {
		s.unreadable = true
		return s, true
	}
	s.tcp(b, header, total)
	return s, true
}

func parseIPv6(b []byte, wire int) (s segment, ok bool) {
	if len(b) < ipv6Bytes {
		return segment{unreadable: true}, true
	}
	s.src = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:24])), 0)
	s.dst = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[24:40])), 0)
	total := ipv6Bytes + int(binary.BigEndian.Uint16(b[4:]))
	if total == ipv6Bytes {
		total = wire
	}
	next, at := b[6], ipv6Bytes
	for {
		switch next {
		case unix.IPPROTO_TCP:
			s.tcp(b, at, total)
			return s, true
		case unix.IPPROTO_FRAGMENT:
			s.unreadable = len(b) < at+1 || b[at] == unix.IPPROTO_TCP || isExtension(b[at])
			return s, s.unreadable
		}
		if !isExtension(next) {
			return s, false
		}
		if len(b) < at+2 {
			s.unreadable = true
			return s, true
		}
		length := (int(b[at+1]) + 1) * 8
		if next == unix.IPPROTO_AH { // RFC 4302 section 2.2
			length = (int(b[at+1]) + 2) * 4
		}
		next, at = b[at], at+length
	}
}

func isExtension(next byte) bool {
	return next == unix.IPPROTO_HOPOPTS || next == unix.IPPROTO_ROUTING || next == unix.IPPROTO_DSTOPTS || next == unix.IPPROTO_AH
}

// tcp reads the TCP header at an offset of a packet that is total bytes long.
func (s *segment) tcp(b []byte, at, total int) {
	if len(b) < at+tcpBytes {
		s.unreadable = true
		return
	}
	h := b[at:]
	s.src = netip.AddrPortFrom(s.src.Addr(), binary.BigEndian.Uint16(h))
	s.dst = netip.AddrPortFrom(s.dst.Addr(), binary.BigEndian.Uint16(h[2:]))
	s.syn, s.ack = h[13]&flagSYN != 0, h[13]&flagACK != 0
	data := at + int(h[12]>>4)*4
	s.payload = max(total-data, 0)
	if end := min(len(b), total); data < end {
		s.head = b[data:end]
	}
}
