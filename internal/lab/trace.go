// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
)

// Packet is one TCP segment.
type Packet struct {
	Src, Dst netip.AddrPort
	Seq      uint32
	SYN, ACK bool
	Payload  []byte
}

// Trace is what a Capture recorded.
type Trace []Packet

const (
	etherIPv4, etherIPv6 = 0x0800, 0x86dd
	protoTCP             = 6
	etherBytes           = 14
	ipv6Bytes            = 40
	flagSYN, flagACK     = 0x02, 0x10
)

// parseFrame reads an Ethernet frame; false if it holds no TCP. IPv6 extension headers do not occur in the lab.
func parseFrame(b []byte) (Packet, bool) {
	if len(b) < etherBytes+20 {
		return Packet{}, false
	}
	kind, ip := binary.BigEndian.Uint16(b[12:]), b[etherBytes:]
	switch {
	case kind == etherIPv4 && ip[9] == protoTCP:
		header, total := int(ip[0]&0xf)*4, int(binary.BigEndian.Uint16(ip[2:]))
		if total == 0 { // a frame beyond 64 KiB states no length
			total = len(ip)
		}
		if header < 20 || total < header || total > len(ip) {
			return Packet{}, false
		}
		src, dst := netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20]))
		return parseTCP(src, dst, ip[header:total])
	case kind == etherIPv6 && len(ip) >= ipv6Bytes && ip[6] == protoTCP:
		length := int(binary.BigEndian.Uint16(ip[4:]))
		if length == 0 {
			length = len(ip) - ipv6Bytes
		}
		if length > len(ip)-ipv6Bytes {
			return Packet{}, false
		}
		src, dst := netip.AddrFrom16([16]byte(ip[8:24])), netip.AddrFrom16([16]byte(ip[24:40]))
		return parseTCP(src, dst, ip[ipv6Bytes:ipv6Bytes+length])
	}
	return Packet{}, false
}

func parseTCP(src, dst netip.Addr, b []byte) (Packet, bool) {
	if len(b) < 20 {
		return Packet{}, false
	}
	header := int(b[12]>>4) * 4
	if header < 20 || header > len(b) {
		return Packet{}, false
	}
	return Packet{
		Src: netip.AddrPortFrom(src, binary.BigEndian.Uint16(b)),
		Dst: netip.AddrPortFrom(dst, binary.BigEndian.Uint16(b[2:])),
		Seq: binary.BigEndian.Uint32(b[4:]),
		SYN: b[13]&flagSYN != 0, ACK: b[13]&flagACK != 0,
		Payload: bytes.Clone(b[header:]),
	}, true
}

// Between keeps the segments whose two ends are both among addrs.
func (t Trace) Between(addrs ...netip.Addr) (kept Trace) {
	for _, p := range t {
		if slices.Contains(addrs, p.Src.Addr()) && slices.Contains(addrs, p.Dst.Addr()) {
			kept = append(kept, p)
		}
	}
	return kept
}

// Clear returns the segments with payload that have port at neither end, and the SYNs towards another port.
func (t Trace) Clear(port uint16) (clear Trace) {
	for _, p := range t {
		opens := p.SYN && !p.ACK
		if (len(p.Payload) > 0 && p.Src.Port() != port || opens) && p.Dst.Port() != port {
			clear = append(clear, p)
		}
	}
	return clear
}

// PayloadBytes adds up the TCP payload.
func (t Trace) PayloadBytes() (n int) {
	for _, p := range t {
		n += len(p.Payload)
	}
	return n
}

// direction is one side of a TCP connection.
type direction struct{ src, dst netip.AddrPort }

// streams puts the payload of each direction in order. Only directions whose SYN was seen are returned.
func (t Trace) streams() map[direction][]byte {
	segments := map[direction]Trace{}
	for _, p := range t {
		d := direction{p.Src, p.Dst}
		segments[d] = append(segments[d], p)
	}
	streams := map[direction][]byte{}
	for d, s := range segments {
		if i := slices.IndexFunc(s, func(p Packet) bool { return p.SYN }); i >= 0 {
			streams[d] = assemble(s[i].Seq+1, s)
		}
	}
	return streams
}

// assemble joins segments from sequence number first on, up to the first gap.
func assemble(first uint32, segments Trace) (stream []byte) {
	sorted := slices.Clone(segments)
	slices.SortStableFunc(sorted, func(a, b Packet) int { return cmp.Compare(int32(a.Seq-first), int32(b.Seq-first)) })
	for _, p := range sorted {
		at := int(int32(p.Seq - first))
		if end := at + len(p.Payload); p.SYN || end <= len(stream) {
			continue
		}
		if at < 0 || at > len(stream) {
			break
		}
		stream = append(stream, p.Payload[len(stream)-at:]...)
	}
	return stream
}

// Count is how often text occurs, both in single segments and across their borders.
func (t Trace) Count(text string) (n int) {
	inStreams := 0
	for _, s := range t.streams() {
		inStreams += bytes.Count(s, []byte(text))
	}
	for _, p := range t {
		n += bytes.Count(p.Payload, []byte(text))
	}
	return max(n, inStreams)
}
