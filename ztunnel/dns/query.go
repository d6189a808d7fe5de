// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

const (
	// ttl is that of what the mesh knows: ambient section 8.7.
	ttl = 30
	// ownSize is what we say that we take over UDP: what fits every path, DNS Flag Day 2020.
	ownSize = 1232
	// headerSize is that of a message without a question.
	headerSize = 12
)

var errNoQuery = errors.New("not a query")

// query is one question of a pod.
type query struct {
	raw      []byte
	from, to netip.AddrPort
	protocol string // "udp" or "tcp"
	msg      dns.Msg
}

// parse reads raw. What is no query is nothing to answer: two resolvers that answer each other's answers never stop.
func (q *query) parse() error {
	if err := q.msg.Unpack(q.raw); err != nil {
		return err
	}
	if q.msg.Response {
		return errNoQuery
	}
	return nil
}

// typeName is bounded: clients may ask for types that do not exist.
func (q *query) typeName() string {
	if len(q.msg.Question) != 1 {
		return "unknown"
	}
	return dns.TypeToString[q.msg.Question[0].Qtype] // "" for others
}

// name is what is asked about, in lower case and without the dot at its end; "" if the mesh cannot know it.
func (q *query) name() string {
	if q.msg.Opcode != dns.OpcodeQuery || len(q.msg.Question) != 1 || q.msg.Question[0].Qclass != dns.ClassINET {
		return ""
	}
	return strings.ToLower(strings.TrimSuffix(q.msg.Question[0].Name, "."))
}

// wants reports whether the question is for records of a type, A or AAAA.
func (q *query) wants(qtype uint16) bool {
	asked := q.msg.Question[0].Qtype
	return asked == qtype || asked == dns.TypeANY
}

// reply packs the mesh's answer: the addresses of the families asked for, in random order. There may be none.
func (q *query) reply(a answer) ([]byte, error) {
	question := q.msg.Question[0]
	m := q.start()
	m.Authoritative = true
	owner := question.Name
	if a.canonical != "" {
		owner = a.canonical + "."
		m.Answer = append(m.Answer, &dns.CNAME{Hdr: header(question.Name, dns.TypeCNAME), Target: owner})
	}
	for _, i := range rand.Perm(len(a.addresses)) {
		ip := a.addresses[i].Unmap()
		switch {
		case q.wants(dns.TypeA) && ip.Is4():
			m.Answer = append(m.Answer, &dns.A{Hdr: header(owner, dns.TypeA), A: ip.AsSlice()})
		case q.wants(dns.TypeAAAA) && ip.Is6():
			m.Answer = append(m.Answer, &dns.AAAA{Hdr: header(owner, dns.TypeAAAA), AAAA: ip.AsSlice()})
		}
	}
	m.Truncate(q.size())
	return m.Pack()
}

func header(name string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: ttl}
}

// start returns the reply without content. We do recurse, by asking the server asked.
func (q *query) start() *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(&q.msg)
	m.RecursionAvailable = true
	if opt := q.msg.IsEdns0(); opt != nil {
		m.SetEdns0(ownSize, opt.Do())
	}
	return m
}

// fail packs the answer SERVFAIL.
func (q *query) fail() []byte {
	m := q.start()
	m.Rcode = dns.RcodeServerFailure
	raw, err := m.Pack()
	if err != nil { // a name that can be read and not be written
		raw = append([]byte(nil), q.raw[:headerSize]...)
		clear(raw[4:])
		raw[2], raw[3] = raw[2]|1<<7, dns.RcodeServerFailure
	}
	return raw
}

// size is how long an answer may be.
func (q *query) size() int {
	if q.protocol == "tcp" {
		return dns.MaxMsgSize
	}
	if opt := q.msg.IsEdns0(); opt != nil && opt.UDPSize() > dns.MinMsgSize {
		return int(opt.UDPSize())
	}
	return dns.MinMsgSize
}

// fit cuts an answer to the client's size and says so in it. One that cannot be read is cut to its header.
func (q *query) fit(reply []byte) []byte {
	if len(reply) <= q.size() {
		return reply
	}
	var m dns.Msg
	if err := m.Unpack(reply); err == nil {
		m.Truncate(q.size())
		if short, err := m.Pack(); err == nil && len(short) <= q.size() {
			return short
		}
	}
	short := append([]byte(nil), reply[:headerSize]...)
	clear(short[4:])
	short[2] |= truncatedBit
	return short
}
