// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"

	"github.com/sluice-mesh/sluice/ztunnel/discovery"
)

// nameServer answers for the names it has, over UDP.
type nameServer struct {
	addr    string
	records sync.Map // question's name to []netip.Addr
	asked   atomic.Int64
}

func startNameServer(t *testing.T) *nameServer {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &nameServer{addr: conn.LocalAddr().String()}
	server := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(s.answer)}
	go func() { _ = server.ActivateAndServe() }()
	t.Cleanup(func() { _ = server.Shutdown(); _ = conn.Close() })
	return s
}

func (s *nameServer) answer(w dns.ResponseWriter, q *dns.Msg) {
	s.asked.Add(1)
	m := new(dns.Msg)
	m.SetReply(q)
	addrs, known := s.records.Load(q.Question[0].Name)
	if !known {
		m.Rcode = dns.RcodeNameError
		_ = w.WriteMsg(m)
		return
	}
	head := dns.RR_Header{Name: q.Question[0].Name, Rrtype: q.Question[0].Qtype, Class: dns.ClassINET, Ttl: 60}
	for _, a := range addrs.([]netip.Addr) {
		switch {
		case a.Is4() && head.Rrtype == dns.TypeA:
			m.Answer = append(m.Answer, &dns.A{Hdr: head, A: a.AsSlice()})
		case !a.Is4() && head.Rrtype == dns.TypeAAAA:
			m.Answer = append(m.Answer, &dns.AAAA{Hdr: head, AAAA: a.AsSlice()})
		}
	}
	_ = w.WriteMsg(m)
}

// resolver asks s alone.
func (s *nameServer) resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", s.addr)
	}}
}

func TestHostNamesAreLookedUpOnce(t *testing.T) {
	s := startNameServer(t)
	h := hosts{resolver: s.resolver()}
	if _, err := h.lookUp(t.Context(), "db.example.com."); err == nil {
		t.Error("an unknown name has an address")
	}
	s.records.Store("db.example.com.", []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")})
	s.asked.Store(0)
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if addrs, err := h.lookUp(t.Context(), "db.example.com."); err != nil || len(addrs) != 2 {
				t.Errorf("got %v, %v, want two addresses", addrs, err)
			}
		})
	}
	all.Wait()
	if n := s.asked.Load(); n != 2 {
		t.Errorf("%d questions, want two: of A and of AAAA", n)
	}
	h.answers["db.example.com."].until = h.answers["db.example.com."].until.Add(-2 * hostLifetime)
	if _, err := h.lookUp(t.Context(), "db.example.com."); err != nil || s.asked.Load() != 4 {
		t.Errorf("an old answer: %v, %d questions in all, want four", err, s.asked.Load())
	}
}

func TestAddressOfTheClientsFamilyIsChosen(t *testing.T) {
	a, b, c := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::1")
	got := map[netip.Addr]bool{}
	for range 200 {
		got[anyOf([]netip.Addr{a, b, c}, a)] = true
	}
	if !got[a] || !got[b] || got[c] {
		t.Errorf("got %v, want both IPv4 addresses and no other", got)
	}
	if got := anyOf([]netip.Addr{a}, c); got != a {
		t.Errorf("got %s, want the only one there is", got)
	}
}

func TestEndpointsByHostName(t *testing.T) {
	w := newWorld(t)
	s := startNameServer(t)
	w.proxy.hosts.resolver = s.resolver()
	s.records.Store("db.example.com.", []netip.Addr{w.legacy.Addr4, w.legacy.Addr6})
	s.records.Store("web.example.com.", []netip.Addr{w.server.Addr4, w.server.Addr6})
	s.records.Store("loop.example.com.", []netip.Addr{hidden4})
	named := func(host string) func(*discovery.Workload) {
		return func(x *discovery.Workload) { x.Addresses, x.Hostname = nil, host }
	}
	webIdentity := func(x *discovery.Workload) { x.ServiceAccount = "server" }
	db, web := netip.MustParseAddr("10.99.0.1"), netip.MustParseAddr("10.99.0.2")
	lost, loop := netip.MustParseAddr("10.99.0.3"), netip.MustParseAddr("10.99.0.4")
	w.store.Apply(discovery.Update{
		Workloads: []*discovery.Workload{
			pod("db", "0.0.0.0", named("db.example.com."), plainTCP, serving("db", 80, 8080)),
			pod("web", "0.0.0.0", named("web.example.com."), webIdentity, serving("web", 80, 8080)),
			pod("lost", "0.0.0.0", named("lost.example.com."), serving("lost", 80, 8080)),
			pod("loop", "0.0.0.0", named("loop.example.com."), serving("loop", 80, 8080)),
		},
		Services: []*discovery.Service{
			service("db", db.String(), []uint16{80, 8080}), service("web", web.String(), []uint16{80, 8080}),
			service("lost", lost.String(), []uint16{80, 8080}), service("loop", loop.String(), []uint16{80, 8080}),
		},
	})
	w.capture(db, web, lost, loop)
	w.legacy.Echo(t, "db", netip.AddrPortFrom(w.legacy.Addr4, 8080).String())
	w.server.Echo(t, "web", netip.AddrPortFrom(w.server.Addr4, 8080).String())

	for range 2 {
		for name, vip := range map[string]netip.Addr{"db": db, "web": web} {
			if answer, err := w.client.AskFrom(netip.AddrPortFrom(vip, 80)); err != nil || answer.Name != name || answer.From.Addr() != w.client.Addr4 {
				t.Fatalf("%s: got %+v, %v, want an answer that saw %s", name, answer, err, w.client.Addr4)
			}
		}
	}
	w.wantLine("connection complete", `verdict="plaintext"`, `dst.workload="db"`, "dst.addr="+w.legacy.Addr4.String()+":8080")
	w.wantLine("connection complete", `verdict="mtls"`, `dst.workload="web"`, `dst.hbone_addr="`+w.server.Addr4.String()+`:8080"`)
	for name, want := range map[string]float64{"db": 2, "web": 2} {
		if got := w.proxy.metric("istio_on_demand_dns_total", `hostname="`+name+`.example.com."`, `source_workload="client"`); got != want {
			t.Errorf("look-ups of %s: got %v, want %v", name, got, want)
		}
	}
	for _, vip := range []netip.Addr{lost, loop} {
		_ = w.mustFail(w.client.Pod, netip.AddrPortFrom(vip, 80))
	}
	w.wantLine(`verdict="refused-no-valid-destination"`, "lost.example.com")
	w.wantLine(`verdict="refused-no-valid-destination"`, "the address of loop.example.com")
}
