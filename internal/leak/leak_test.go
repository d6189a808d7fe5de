// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

var (
	memberA = netip.MustParseAddrPort("10.0.0.1:40000")
	memberB = netip.MustParseAddrPort("10.0.0.2:80")
	hboneB  = netip.MustParseAddrPort("10.0.0.2:15008")
	memberC = netip.MustParseAddrPort("[fd00::1]:40000")
	memberD = netip.MustParseAddrPort("[fd00::2]:80")
	legacy  = netip.MustParseAddrPort("10.9.9.9:40000")
	members = []netip.Addr{memberA.Addr(), memberB.Addr(), memberC.Addr(), memberD.Addr()}

	hello = []byte{22, 3, 1, 0, 1, 1}
)

// made is a frame to be made.
type made struct {
	src, dst netip.AddrPort
	flags    byte
	payload  string
	tags     int
	options  int    // of IPv4, bytes
	fragment uint16 // IPv4 flags and offset
	hops     int    // IPv6 hop-by-hop headers
}

func (m made) bytes() []byte {
	b := make([]byte, 12)
	for range m.tags {
		b = append(b, 0x81, 0, 0, 0)
	}
	tcp := binary.BigEndian.AppendUint16(nil, m.src.Port())
	tcp = binary.BigEndian.AppendUint16(tcp, m.dst.Port())
	tcp = append(tcp, 0, 0, 0, 0, 0, 0, 0, 0, 5<<4, m.flags, 0, 0, 0, 0, 0, 0)
	tcp = append(tcp, m.payload...)
	if m.src.Addr().Is4() {
		header := 20 + m.options
		b = append(b, 8, 0, 0x40|byte(header/4), 0)
		b = binary.BigEndian.AppendUint16(b, uint16(header+len(tcp)))
		b = append(b, 0, 0, byte(m.fragment>>8), byte(m.fragment), 64, unix.IPPROTO_TCP, 0, 0)
		b = append(append(b, m.src.Addr().AsSlice()...), m.dst.Addr().AsSlice()...)
		return append(append(b, make([]byte, m.options)...), tcp...)
	}
	next := byte(unix.IPPROTO_TCP)
	if m.hops > 0 {
		next = unix.IPPROTO_HOPOPTS
	}
	b = append(b, 0x86, 0xdd, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(8*m.hops+len(tcp)))
	b = append(append(append(b, next, 64), m.src.Addr().AsSlice()...), m.dst.Addr().AsSlice()...)
	for i := range m.hops {
		next := byte(unix.IPPROTO_HOPOPTS)
		if i == m.hops-1 {
			next = unix.IPPROTO_TCP
		}
		b = append(b, next, 0, 1, 4, 0, 0, 0, 0)
	}
	return append(b, tcp...)
}

func TestJudge(t *testing.T) {
	wire, link := Point{Interface: "wire"}, Point{Interface: "veth", FromPod: true}
	syn := func(src, dst netip.AddrPort) made { return made{src: src, dst: dst, flags: flagSYN} }
	data := func(src, dst netip.AddrPort, payload string) made {
		return made{src: src, dst: dst, flags: flagACK, payload: payload}
	}
	with := func(m made, edit func(*made)) made { edit(&m); return m }
	for name, tt := range map[string]struct {
		at     Point
		frames []made
		want   string // "" for no leak
	}{
		"payload in clear":                    {wire, []made{data(memberA, memberB, "GET /")}, "payload in clear"},
		"payload in clear, IPv6":              {wire, []made{data(memberC, memberD, "GET /")}, "payload in clear"},
		"behind IP options":                   {wire, []made{with(data(memberA, memberB, "x"), func(m *made) { m.options = 40 })}, "payload in clear"},
		"behind extension headers":            {wire, []made{with(data(memberC, memberD, "x"), func(m *made) { m.hops = 5 })}, "payload in clear"},
		"behind VLAN tags":                    {wire, []made{with(data(memberA, memberB, "x"), func(m *made) { m.tags = 3 })}, "payload in clear"},
		"a fragment":                          {wire, []made{with(data(memberA, memberB, "x"), func(m *made) { m.fragment = 0x2000 })}, "fragment"},
		"SYN":                                 {wire, []made{syn(memberA, memberB)}, "SYN in clear"},
		"no payload":                          {wire, []made{data(memberA, memberB, "")}, ""},
		"from a stranger":                     {wire, []made{syn(legacy, memberB), data(legacy, memberB, "x"), data(memberB, legacy, "x")}, ""},
		"out of a pod that spoofs its source": {link, []made{syn(legacy, memberB)}, "SYN in clear"},
		"mutual TLS":                          {wire, []made{syn(memberA, hboneB), data(memberA, hboneB, string(hello)), data(hboneB, memberA, string(hello)), data(memberA, hboneB, "\x99")}, ""},
		"clear on port 15008":                 {wire, []made{syn(memberA, hboneB), data(memberA, hboneB, "GET /")}, "not TLS"},
		"clear answer on port 15008":          {wire, []made{syn(memberA, hboneB), data(hboneB, memberA, "HTTP/1.1")}, "not TLS"},
		"from port 15008 without a beginning": {wire, []made{data(hboneB, memberA, string(hello))}, "not seen"},
		"TLS, a server's side of its link":    {link, []made{{src: hboneB, dst: memberA, flags: flagSYN | flagACK}, data(hboneB, memberA, string(hello))}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			j := newJudge(members)
			for _, m := range tt.frames {
				b := m.bytes()
				j.frame(tt.at, b, len(b))
			}
			if len(j.report.Leaks) != j.report.Count || j.report.Frames != len(tt.frames) {
				t.Fatalf("report: %+v", j.report)
			}
			switch {
			case tt.want == "" && j.report.Count > 0:
				t.Errorf("got %v, want no leak", j.report.Leaks)
			case tt.want != "" && (j.report.Count != 1 || !strings.Contains(j.report.Leaks[0].Why, tt.want)):
				t.Errorf("got %v, want one leak: %s", j.report.Leaks, tt.want)
			}
		})
	}
}

// TestJudgeForgivesOldConnections: what began before an end was a member goes on; a new one must not.
func TestJudgeForgivesOldConnections(t *testing.T) {
	j := newJudge(members[:1])
	wire := Point{Interface: "wire"}
	feed := func(m made) { b := m.bytes(); j.frame(wire, b, len(b)) }
	feed(made{src: memberA, dst: memberB, flags: flagSYN})
	j.setMembers(members)
	feed(made{src: memberA, dst: memberB, flags: flagACK, payload: "x"})
	feed(made{src: memberB, dst: memberA, flags: flagACK, payload: "x"})
	other := netip.AddrPortFrom(memberA.Addr(), 40001)
	j.allow(other, memberB)
	feed(made{src: other, dst: memberB, flags: flagACK, payload: "x"})
	if j.report.Count != 0 {
		t.Errorf("got %v, want no leak", j.report.Leaks)
	}
	feed(made{src: netip.AddrPortFrom(memberA.Addr(), 40002), dst: memberB, flags: flagACK, payload: "x"})
	if j.report.Count != 1 {
		t.Errorf("got %v, want one leak", j.report.Leaks)
	}
}

// FuzzParse: no frame makes the parser panic, whatever was cut off.
func FuzzParse(f *testing.F) {
	f.Add(made{src: memberA, dst: memberB, payload: "x", options: 8, tags: 1}.bytes())
	f.Add(made{src: memberC, dst: memberD, payload: "x", hops: 2}.bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, ok := parse(b, len(b)); ok && !s.unreadable && (s.payload < 0 || !s.dst.IsValid()) {
			t.Errorf("got %+v", s)
		}
	})
}
