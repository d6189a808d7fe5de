// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"

	"github.com/miekg/dns"
)

func ask(t *testing.T, protocol, name string, qtype uint16, edit func(*dns.Msg)) *query {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(name, qtype)
	if edit != nil {
		edit(m)
	}
	raw, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	q := &query{raw: raw, protocol: protocol}
	if err := q.parse(); err != nil {
		t.Fatal(err)
	}
	return q
}

func unpack(t *testing.T, raw []byte) *dns.Msg {
	t.Helper()
	var m dns.Msg
	if err := m.Unpack(raw); err != nil {
		t.Fatal(err)
	}
	return &m
}

func TestReply(t *testing.T) {
	a := answer{canonical: "api.example.com", addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")}}
	q := ask(t, "udp", "Api.Example.com.Shop.svc.cluster.local.", dns.TypeA, func(m *dns.Msg) { m.SetEdns0(4096, true) })
	raw, err := q.reply(a)
	if err != nil {
		t.Fatal(err)
	}
	m := unpack(t, raw)
	if m.Id != q.msg.Id || !m.Response || !m.Authoritative || m.Rcode != 0 || m.Question[0].Name != q.msg.Question[0].Name || m.IsEdns0() == nil || len(m.Answer) != 3 {
		t.Fatalf("got %v", m)
	}
	if c, ok := m.Answer[0].(*dns.CNAME); !ok || c.Target != "api.example.com." || c.Hdr.Name != q.msg.Question[0].Name {
		t.Errorf("first record is %v", m.Answer[0])
	}
	if h := m.Answer[1].Header(); h.Name != "api.example.com." || h.Ttl != 30 {
		t.Errorf("second record is %v", m.Answer[1])
	}
	q = ask(t, "udp", "web.", dns.TypeAAAA, nil)
	if raw, err = q.reply(answer{addresses: a.addresses}); err != nil {
		t.Fatal(err)
	}
	if m = unpack(t, raw); m.Rcode != 0 || len(m.Answer) != 0 || m.IsEdns0() != nil {
		t.Errorf("the other family: got %v, want no error and no answer", m)
	}
}

func TestAnyIsAllThatTheMeshKnows(t *testing.T) {
	q := ask(t, "udp", "web.", dns.TypeANY, nil)
	raw, err := q.reply(answer{addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("2001:db8::1")}})
	if err != nil {
		t.Fatal(err)
	}
	types := map[uint16]bool{}
	for _, rr := range unpack(t, raw).Answer {
		types[rr.Header().Rrtype] = true
	}
	if !types[dns.TypeA] || !types[dns.TypeAAAA] {
		t.Errorf("got %v, want A and AAAA", types)
	}
}

func TestReplyIsCutToWhatTheClientTakes(t *testing.T) {
	var a answer
	for i := range 200 {
		a.addresses = append(a.addresses, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}))
	}
	for _, tc := range []struct {
		protocol string
		edns     uint16
		size     int
		cut      bool
	}{{"udp", 0, 512, true}, {"udp", 100, 512, true}, {"udp", 1232, 1232, true}, {"udp", 8192, 8192, false}, {"tcp", 0, 65535, false}} {
		q := ask(t, tc.protocol, "web.", dns.TypeA, func(m *dns.Msg) {
			if tc.edns > 0 {
				m.SetEdns0(tc.edns, false)
			}
		})
		raw, err := q.reply(a)
		if err != nil {
			t.Fatal(err)
		}
		m := unpack(t, raw)
		if len(raw) > tc.size || m.Truncated != tc.cut || tc.cut == (len(m.Answer) == 200) {
			t.Errorf("%+v: %d bytes, truncated %t, %d records", tc, len(raw), m.Truncated, len(m.Answer))
		}
	}
}

func TestForeignReplyIsCut(t *testing.T) {
	q := ask(t, "udp", "big.", dns.TypeTXT, nil)
	m := new(dns.Msg).SetReply(&q.msg)
	for i := range 50 {
		m.Answer = append(m.Answer, &dns.TXT{Hdr: header("big.", dns.TypeTXT), Txt: []string{fmt.Sprintf("some text %d", i)}})
	}
	raw, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	if short := q.fit(raw); len(short) > 512 || !unpack(t, short).Truncated {
		t.Errorf("%d bytes", len(short))
	}
	garbage := append(bytes.Clone(raw[:headerSize]), bytes.Repeat([]byte{0xff}, 600)...)
	if short := q.fit(garbage); len(short) != headerSize || !unpack(t, short).Truncated {
		t.Errorf("unreadable: got %x", short)
	}
}

func TestOnlyTheAnswerToTheQuestionCounts(t *testing.T) {
	q := ask(t, "udp", "www.example.org.", dns.TypeA, nil)
	good, err := new(dns.Msg).SetReply(&q.msg).Pack()
	if err != nil {
		t.Fatal(err)
	}
	change := func(at int, b byte) []byte {
		c := bytes.Clone(good)
		c[at] = b
		return c
	}
	refused := append(change(3, dns.RcodeRefused)[:4], make([]byte, 8)...)
	for name, tc := range map[string]struct {
		reply []byte
		want  bool
	}{
		"the answer":            {good, true},
		"other case":            {change(13, 'W'), true},
		"no question, an error": {refused, true},
		"no question, no error": {append(change(3, 0)[:4], make([]byte, 8)...), false},
		"another id":            {change(0, good[0]+1), false},
		"a query":               {q.raw, false},
		"another name":          {change(13, 'x'), false},
		"another type":          {change(len(good)-3, byte(dns.TypeTXT)), false},
		"cut off":               {good[:20], false},
		"shorter than a header": {good[:11], false},
		"empty":                 {nil, false},
	} {
		if got := answers(q.raw, tc.reply); got != tc.want {
			t.Errorf("%s: %t, want %t", name, got, tc.want)
		}
	}
}

func TestWhatIsNoQueryIsNotAnswered(t *testing.T) {
	m := new(dns.Msg)
	m.SetQuestion("web.", dns.TypeA)
	m.Response = true
	raw, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range [][]byte{nil, {1, 2, 3}, raw} {
		if err := (&query{raw: bad}).parse(); err == nil {
			t.Errorf("%x was taken for a query", bad)
		}
	}
}

func FuzzQuery(f *testing.F) {
	m := new(dns.Msg)
	for _, name := range []string{"web.", "api.example.com.shop.svc.cluster.local.", ".", `a\.b.`, `\000.`} {
		m.SetQuestion(name, dns.TypeA)
		if raw, err := m.Pack(); err == nil {
			f.Add(raw, raw)
		}
	}
	r := testResolver()
	f.Fuzz(func(t *testing.T, raw, reply []byte) {
		q := &query{raw: raw, protocol: "udp"}
		if q.parse() != nil {
			return
		}
		_ = answers(raw, reply)
		_ = q.typeName()
		check := func(what string, out []byte) {
			if len(out) < headerSize || len(out) > q.size() || !bytes.Equal(out[:2], raw[:2]) {
				t.Fatalf("%s: %x", what, out)
			}
		}
		check("SERVFAIL", q.fit(q.fail()))
		if len(reply) >= headerSize {
			check("foreign", q.fit(withID(reply, uint16(raw[0])<<8|uint16(raw[1]))))
		}
		name := q.name()
		if name == "" {
			return
		}
		if a, ok := r.lookup(fakeClient, name); ok {
			if out, err := q.reply(a); err == nil {
				check("reply", q.fit(out))
			}
		}
	})
}
