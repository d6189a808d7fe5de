// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// TCP flags as they are in the header's 14th byte.
const (
	flagFIN = 1 << iota
	flagSYN
	flagRST
	flagPSH
	flagACK
)

// Constants of <linux/if_ether.h> and of RFC 791, 8200.
const (
	etherTypeIPv4 = unix.ETH_P_IP
	etherTypeIPv6 = unix.ETH_P_IPV6
	ipv4MoreFrags = 0x2000
	macBytes      = 6
)

// frame describes an Ethernet frame to be made. The zero value of each field is the usual one.
type frame struct {
	src, dst netip.AddrPort
	flags    byte
	payload  []byte

	proto     byte // TCP if 0
	etherType uint16
	options   int    // bytes of IPv4 options, a multiple of 4
	fragment  uint16 // IPv4 flags and offset
	// extensions are IPv6 extension headers in order, without their next header field, which comes first.
	extensions []extension
	doff       byte // 5 if 0
	cut        int  // bytes to cut from the end
	noLength   bool // as BIG TCP: the length field is 0
}

type extension struct {
	proto byte
	rest  []byte
}

// bytes lays the frame out:
//
//	Ethernet 14 | IPv4 20 + options, or IPv6 40 + extensions | TCP 20 | payload
func (f frame) bytes() []byte {
	segment := f.segment()
	var packet []byte
	etherType := uint16(etherTypeIPv4)
	if f.dst.Addr().Is4() {
		packet = f.ipv4(segment)
	} else {
		etherType, packet = etherTypeIPv6, f.ipv6(segment)
	}
	if f.etherType != 0 {
		etherType = f.etherType
	}
	b := []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1}
	b = binary.BigEndian.AppendUint16(b, etherType)
	b = append(b, packet...)
	return b[:len(b)-f.cut]
}

func (f frame) protocol() byte {
	if f.proto != 0 {
		return f.proto
	}
	return unix.IPPROTO_TCP
}

func (f frame) segment() []byte {
	doff := f.doff
	if doff == 0 {
		doff = 5
	}
	b := binary.BigEndian.AppendUint16(nil, f.src.Port())
	b = binary.BigEndian.AppendUint16(b, f.dst.Port())
	b = append(b, 0, 0, 0, 1, 0, 0, 0, 1, doff<<4, f.flags, 0xff, 0xff, 0, 0, 0, 0)
	b = append(b, f.payload...)
	binary.BigEndian.PutUint16(b[16:], checksum(b, f.pseudoHeader(len(b))))
	return b
}

func (f frame) pseudoHeader(length int) uint32 {
	sum := uint32(unix.IPPROTO_TCP) + uint32(length)
	for _, addr := range []netip.Addr{f.src.Addr(), f.dst.Addr()} {
		bytes := addr.AsSlice()
		for i := 0; i < len(bytes); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(bytes[i:]))
		}
	}
	return sum
}

// checksum is RFC 1071's over b, begun with sum.
func checksum(b []byte, sum uint32) uint16 {
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func (f frame) ipv4(segment []byte) []byte {
	header := 20 + f.options
	total := header + len(segment)
	if f.noLength {
		total = 0
	}
	b := []byte{0x40 | byte(header/4), 0}
	b = binary.BigEndian.AppendUint16(b, uint16(total))
	b = append(b, 0, 1)
	b = binary.BigEndian.AppendUint16(b, f.fragment)
	b = append(b, 64, f.protocol(), 0, 0)
	b = append(b, f.src.Addr().AsSlice()...)
	b = append(b, f.dst.Addr().AsSlice()...)
	for range f.options {
		b = append(b, 1) // no-operation
	}
	binary.BigEndian.PutUint16(b[10:], checksum(b, 0))
	return append(b, segment...)
}

func (f frame) ipv6(segment []byte) []byte {
	var headers []byte
	next := f.protocol()
	for i := len(f.extensions) - 1; i >= 0; i-- {
		headers = append(append([]byte{next}, f.extensions[i].rest...), headers...)
		next = f.extensions[i].proto
	}
	length := len(headers) + len(segment)
	if f.noLength {
		length = 0
	}
	b := []byte{0x60, 0, 0, 0}
	b = binary.BigEndian.AppendUint16(b, uint16(length))
	b = append(b, next, 64)
	b = append(b, f.src.Addr().AsSlice()...)
	b = append(b, f.dst.Addr().AsSlice()...)
	return append(append(b, headers...), segment...)
}

// Extension headers of 8 bytes, AH of 12.
func optionsHeader(proto byte) extension {
	return extension{proto, []byte{0, 1, 4, 0, 0, 0, 0}}
}

func routingHeader(segmentsLeft byte) extension {
	return extension{unix.IPPROTO_ROUTING, []byte{0, 4, segmentsLeft, 0, 0, 0, 0}}
}

func authHeader() extension {
	return extension{unix.IPPROTO_AH, []byte{1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1}}
}

// fragmentHeader's offset is in units of 8 bytes.
func fragmentHeader(offset uint16, more bool) extension {
	field := offset << 3
	if more {
		field |= 1
	}
	return extension{unix.IPPROTO_FRAGMENT, []byte{0, byte(field >> 8), byte(field), 0, 0, 0, 1}}
}
