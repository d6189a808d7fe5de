// SPDX-License-Identifier: Apache-2.0

// Package leak watches interfaces for TCP that should be in mutual TLS and is not.
//
// A leak is a segment from one mesh address to another that carries payload, or opens a connection, and does not belong
// to a TLS connection on port 15008. At the host's end of a pod's link all that comes out of the pod towards the mesh
// counts, whatever it calls its source. Connections that began while one of their ends was no member are not counted:
// enrolment leaves them alone.
package leak

import (
	"fmt"
	"net/netip"
	"sync"
)

const (
	hbonePort = 15008
	// recordHandshake begins a TLS connection, recordData what it carries; RFC 8446 section 5.1.
	recordChangeCipher, recordData = 20, 23
	// maxKept bounds the leaks that are kept whole; all are counted.
	maxKept = 20
)

// Point is an interface to watch.
type Point struct {
	NS, Interface string
	// FromPod watches only what comes in, from any source: for the host's end of a pod's link.
	FromPod bool
}

// Leak is a segment that should not have been there.
type Leak struct {
	Point    Point
	Src, Dst netip.AddrPort
	Why      string
	Payload  int
	Head     []byte
}

func (l Leak) String() string {
	return fmt.Sprintf("%s of %s: %v to %v: %s, %d bytes: %.32q", l.Point.Interface, l.Point.NS, l.Src, l.Dst, l.Why, l.Payload, l.Head)
}

// Report is what a Watch saw.
type Report struct {
	Frames int // of any kind
	HBONE  int // segments with payload of port 15008
	Count  int // leaks
	Leaks  []Leak
}

// direction is one side of a connection as one point sees it.
type direction struct {
	point    Point
	src, dst netip.AddrPort
}

func (d direction) reversed() direction { return direction{d.point, d.dst, d.src} }

// judge decides about segments. Safe for concurrent use: several points feed it.
type judge struct {
	mu      sync.Mutex
	members map[netip.Addr]bool
	allowed map[[2]netip.AddrPort]bool
	outside map[direction]bool // of connections that began while an end was no member
	begun   map[direction]bool // of port 15008: whether the first payload was seen
	report  Report
}

func newJudge(members []netip.Addr) *judge {
	j := &judge{allowed: map[[2]netip.AddrPort]bool{}, outside: map[direction]bool{}, begun: map[direction]bool{}}
	j.setMembers(members)
	return j
}

func (j *judge) setMembers(members []netip.Addr) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.members = map[netip.Addr]bool{}
	for _, a := range members {
		j.members[a] = true
	}
}

// allow exempts a connection that is open already.
func (j *judge) allow(a, b netip.AddrPort) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.allowed[[2]netip.AddrPort{a, b}], j.allowed[[2]netip.AddrPort{b, a}] = true, true
}

// frame judges one frame that was seen at a point.
func (j *judge) frame(p Point, b []byte, wire int) {
	s, ok := parse(b, wire)
	j.mu.Lock()
	defer j.mu.Unlock()
	j.report.Frames++
	if !ok {
		return
	}
	if why := j.offence(p, &s); why != "" {
		j.report.Count++
		if len(j.report.Leaks) < maxKept {
			j.report.Leaks = append(j.report.Leaks, Leak{p, s.src, s.dst, why, s.payload, append([]byte(nil), s.head[:min(len(s.head), 32)]...)})
		}
	}
}

// offence says what is wrong with a segment; "" if nothing.
func (j *judge) offence(p Point, s *segment) string {
	if s.unreadable && !s.dst.IsValid() {
		return "frame that cannot be read"
	}
	d := direction{p, s.src, s.dst}
	if !j.members[s.dst.Addr()] || !p.FromPod && !j.members[s.src.Addr()] {
		if s.syn {
			j.outside[d], j.outside[d.reversed()] = true, true
		}
		return ""
	}
	hbone := s.dst.Port() == hbonePort || s.src.Port() == hbonePort
	switch {
	case s.unreadable:
		return "fragment or headers that cannot be read"
	case j.allowed[[2]netip.AddrPort{s.src, s.dst}]:
		return ""
	case s.syn && !s.ack && s.dst.Port() != hbonePort:
		return "SYN in clear"
	case s.syn:
		delete(j.outside, d)
		delete(j.outside, d.reversed())
		j.begun[d] = false
		if !s.ack {
			j.begun[d.reversed()] = false
		}
	case s.payload == 0 || j.outside[d]:
		return ""
	case !hbone:
		return "payload in clear"
	}
	return j.tls(d, s)
}

// tls checks that the first payload of a direction begins with a TLS record. Later ones may begin anywhere in one.
func (j *judge) tls(d direction, s *segment) string {
	if s.payload == 0 {
		return ""
	}
	j.report.HBONE++
	seen, known := j.begun[d]
	if !known {
		return "on port 15008, and how it began was not seen"
	}
	if seen {
		return ""
	}
	j.begun[d] = true
	if len(s.head) < 3 || s.head[0] < recordChangeCipher || s.head[0] > recordData || s.head[1] != 3 {
		return "not TLS on port 15008"
	}
	return ""
}
