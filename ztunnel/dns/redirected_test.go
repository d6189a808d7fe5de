// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/testutil"
	"github.com/sluice-mesh/sluice/ztunnel/discovery"
	"github.com/sluice-mesh/sluice/ztunnel/inpod"
	"github.com/sluice-mesh/sluice/ztunnel/telemetry"
)

// dnsRules are those of a foreign agent that concern queries: ambient section 1.3.
func dnsRules(iptables, loopback string) []string {
	return []string{
		iptables + " -t mangle -A PREROUTING -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff",
		iptables + " -t mangle -A OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff",
		iptables + " -t nat -A OUTPUT ! -o lo -p udp --dport 53 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15053",
		iptables + " -t nat -A OUTPUT ! -d " + loopback + " -p tcp --dport 53 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15053",
		iptables + " -t raw -A OUTPUT -p udp -m mark --mark 0x539/0xfff --dport 53 -j CT --zone 1",
		iptables + " -t raw -A PREROUTING -p udp -m mark ! --mark 0x539/0xfff --sport 53 -j CT --zone 1",
	}
}

// redirectedClient is a pod whose connections are carried in plaintext.
type redirectedClient struct {
	pod      *inpod.Pod
	workload *discovery.Workload // nil: the control plane never says who it is
}

func (c redirectedClient) Workload(context.Context) (*discovery.Workload, error) {
	if c.workload == nil {
		return nil, errors.New("unknown")
	}
	return c.workload, nil
}

func (redirectedClient) Reserve(int) (release func(), err error) { return func() {}, nil }

func (redirectedClient) Shed(*net.TCPListener, error) int { return 0 }

func (c redirectedClient) Dial(ctx context.Context, _, to netip.AddrPort) (net.Conn, error) {
	return c.pod.Dial(ctx, netip.Addr{}, to)
}

// redirectedWorld is a pod with a foreign agent's rules, and three pods that are or are not name servers.
type redirectedWorld struct {
	asker, asked, dead, live *testutil.Pod
	metrics                  *telemetry.Metrics
	server                   *Server
	listeners                *inpod.Listeners
	held, release            chan struct{} // the name "held." is answered after release, which is told by held
}

func newRedirectedWorld(t *testing.T, known *discovery.Workload) *redirectedWorld {
	t.Helper()
	testutil.RequireRoot(t)
	node := testutil.NewNode(t)
	w := &redirectedWorld{
		asker: node.Pod(t, "asker"), asked: node.Pod(t, "asked"), dead: node.Pod(t, "dead"), live: node.Pod(t, "live"),
		metrics: telemetry.NewMetrics("test"), held: make(chan struct{}, 4), release: make(chan struct{}),
	}
	for _, rule := range append(dnsRules("iptables", "127.0.0.1/32"), dnsRules("ip6tables", "::1/128")...) {
		argv := strings.Fields(rule)
		w.asker.Run(t, argv[0], argv[1:]...)
	}
	for _, p := range []*testutil.Pod{w.asked, w.live} {
		for _, a := range []netip.Addr{p.Addr4, p.Addr6} {
			w.serveNames(t, p, netip.AddrPortFrom(a, 53))
		}
	}
	fd, err := unix.Open(w.asker.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	pod, err := inpod.NewPod(inpod.Info{UID: "asker", Name: "asker"}, fd, inpod.NewSockets(t.Context(), inpod.SetMark))
	if err != nil {
		t.Fatal(err)
	}
	l, err := inpod.ListenInPodForDNS(t.Context(), pod, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(Config{
		Resolver: testResolver(), Metrics: w.metrics, Log: slog.New(slog.DiscardHandler),
		Redirected: &Redirected{Servers: []netip.AddrPort{netip.AddrPortFrom(w.dead.Addr4, 53), netip.AddrPortFrom(w.live.Addr6, 53)}},
	}, pod, redirectedClient{pod, known})
	s.Listen(l.DNSUDP, l.DNSTCP)
	t.Cleanup(func() { l.Close(); s.Stop() })
	w.server, w.listeners = s, l
	return w
}

// serveNames says in p, of any name, from which pod the answer is. The name "big." has an answer that fits no datagram.
func (w *redirectedWorld) serveNames(t *testing.T, p *testutil.Pod, at netip.AddrPort) {
	t.Helper()
	handler := dns.HandlerFunc(func(rw dns.ResponseWriter, m *dns.Msg) {
		if m.Question[0].Name == "held." {
			w.held <- struct{}{}
			<-w.release
		}
		r := new(dns.Msg).SetReply(m)
		n := 1
		if m.Question[0].Name == "big." {
			n = 100
		}
		for range n {
			r.Answer = append(r.Answer, &dns.TXT{Hdr: header(m.Question[0].Name, dns.TypeTXT), Txt: []string{p.Name}})
		}
		if rw.LocalAddr().Network() == "udp" {
			r.Truncate(512)
		}
		_ = rw.WriteMsg(r)
	})
	var packets net.PacketConn
	p.MustDo(t, func() (err error) { packets, err = net.ListenPacket("udp", at.String()); return err })
	for _, s := range []*dns.Server{{PacketConn: packets, Handler: handler}, {Listener: p.Listen(t, "tcp", at.String()), Handler: handler}} {
		go func() { _ = s.ActivateAndServe() }()
		t.Cleanup(func() { _ = s.Shutdown() })
	}
}

// ask asks the name server of the pod asked.
func (w *redirectedWorld) ask(t *testing.T, protocol, family, name string, qtype uint16) *dns.Msg {
	t.Helper()
	conn, err := w.asker.Dial(t.Context(), protocol, netip.AddrPortFrom(w.asked.Addr(family), 53).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	c := &dns.Conn{Conn: conn}
	if err := c.WriteMsg(new(dns.Msg).SetQuestion(name, qtype)); err != nil {
		t.Fatal(err)
	}
	m, err := c.ReadMsg()
	if err != nil {
		t.Fatalf("%s, IPv%s, %s: %v", protocol, family, name, err)
	}
	return m
}

func TestQueriesThatAForeignAgentRedirects(t *testing.T) {
	w := newRedirectedWorld(t, fakeClient)
	for _, protocol := range []string{"udp", "tcp"} {
		for _, family := range []string{"4", "6"} {
			t.Run(protocol+" IPv"+family, func(t *testing.T) {
				m := w.ask(t, protocol, family, "web.", dns.TypeA)
				if len(m.Answer) != 1 || !strings.HasSuffix(m.Answer[0].String(), "10.1.0.1") || !m.Authoritative {
					t.Errorf("a name of the mesh: got %v", m)
				}
				m = w.ask(t, protocol, family, "elsewhere.", dns.TypeTXT)
				if len(m.Answer) != 1 || !slices.Equal(m.Answer[0].(*dns.TXT).Txt, []string{w.live.Name}) {
					t.Errorf("another name: got %v, want what %s says, not the server that was asked", m, w.live.Name)
				}
				if m = w.ask(t, protocol, family, "big.", dns.TypeTXT); m.Truncated != (protocol == "udp") || (len(m.Answer) == 100) != (protocol == "tcp") {
					t.Errorf("large answer: truncated %t, %d records", m.Truncated, len(m.Answer))
				}
			})
		}
	}
	w.wantCounts(t, map[string]int{
		`istio_dns_requests_total{request_protocol="udp",request_query_type="A"`:            2,
		`istio_dns_requests_total{request_protocol="tcp",request_query_type="A"`:            2,
		`istio_dns_requests_total{request_protocol="udp",request_query_type="TXT"`:          4,
		`istio_dns_requests_total{request_protocol="tcp",request_query_type="TXT"`:          4,
		`istio_dns_upstream_requests_total{request_protocol="udp",request_query_type="TXT"`: 4,
		`istio_dns_upstream_requests_total{request_protocol="tcp",request_query_type="TXT"`: 4,
	})
}

// wantCounts holds metrics, by how their line begins, against the number of queries made.
func (w *redirectedWorld) wantCounts(t *testing.T, want map[string]int) {
	t.Helper()
	page := httptest.NewRecorder()
	telemetry.StatsHandler(w.metrics).ServeHTTP(page, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for line := range strings.Lines(page.Body.String()) {
		if strings.HasPrefix(line, `istio_dns_upstream_requests_total{`) && strings.Contains(line, `query_type="A"`) {
			t.Errorf("a name of the mesh was asked for elsewhere: %s", line)
		}
		for prefix, n := range want {
			if strings.HasPrefix(line, prefix) && strings.HasSuffix(line, fmt.Sprintf("} %d\n", n)) {
				delete(want, prefix)
			}
		}
	}
	if len(want) > 0 {
		t.Errorf("not counted so: %v in\n%s", want, page.Body)
	}
}

// What was asked before a drain is answered, although the sockets are closed then and another process may have its own.
func TestDrainAnswersRedirectedQueries(t *testing.T) {
	w := newRedirectedWorld(t, fakeClient)
	families := []string{"4", "6"}
	answers := make(chan string, len(families))
	for _, family := range families {
		go func() {
			conn, err := w.asker.Dial(t.Context(), "udp", netip.AddrPortFrom(w.asked.Addr(family), 53).String())
			if err != nil {
				answers <- err.Error()
				return
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
			c := &dns.Conn{Conn: conn}
			if err := c.WriteMsg(new(dns.Msg).SetQuestion("held.", dns.TypeTXT)); err != nil {
				answers <- err.Error()
				return
			}
			m, err := c.ReadMsg()
			if err != nil {
				answers <- err.Error()
				return
			}
			answers <- fmt.Sprintf("%d records", len(m.Answer))
		}()
	}
	for range families {
		<-w.held
	}
	w.listeners.Close()
	drained := make(chan struct{})
	go func() { w.server.Drain(t.Context()); close(drained) }()
	close(w.release)
	for range families {
		if got := <-answers; got != "1 records" {
			t.Errorf("got %s, want an answer", got)
		}
	}
	<-drained
}

func TestRedirectedQueriesOfAnUnknownPod(t *testing.T) {
	w := newRedirectedWorld(t, nil)
	for _, protocol := range []string{"udp", "tcp"} {
		if m := w.ask(t, protocol, "4", "web.", dns.TypeA); m.Rcode != dns.RcodeServerFailure {
			t.Errorf("%s: got %v, want SERVFAIL", protocol, m)
		}
	}
}

func TestServersAreReadButForLoopback(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	for text, want := range map[string][]string{
		"nameserver 127.0.0.53\nnameserver 10.96.0.10\nsearch x\nnameserver fd00::a\n": {"10.96.0.10:53", "[fd00::a]:53"},
		"nameserver 127.0.0.1\nnameserver ::1\n":                                       nil,
		"":                                                                             nil,
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		servers, err := ReadServers(file)
		var got []string
		for _, s := range servers {
			got = append(got, s.String())
		}
		if !slices.Equal(got, want) || (err == nil) != (want != nil) {
			t.Errorf("%q: got %v, %v, want %v", text, got, err, want)
		}
	}
	if _, err := ReadServers(file + "x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}
