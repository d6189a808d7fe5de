// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/sluice-mesh/sluice/internal/lab"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

const dnsManifests = `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: mesh}
spec: {clusterIP: 10.96.0.53, clusterIPs: [10.96.0.53, "fd00:96::53"], selector: {app: server}, ports: [{port: 80, targetPort: 7000}]}
---
apiVersion: v1
kind: Service
metadata: {name: single, namespace: mesh}
spec: {clusterIP: 10.96.0.54, selector: {app: server}, ports: [{port: 80, targetPort: 7000}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: mesh}
spec: {clusterIP: None, selector: {app: server}, ports: [{port: 7000}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: mesh}
spec: {mtls: {mode: STRICT}}
`

const askerManifest = `
apiVersion: v1
kind: Pod
metadata: {name: asker, namespace: mesh, labels: {app: asker}, annotations: {ambient.istio.io/dns-capture: "%t"}}
spec: {serviceAccountName: asker}
`

// What nameServer says of any name that is not one of its special ones: an address that tells it from the mesh.
var foreign4, foreign6 = netip.MustParseAddr("198.51.100.66"), netip.MustParseAddr("2001:db8:66::66")

// nameServer is a DNS server of the network. It counts what it is asked.
type nameServer struct {
	asked atomic.Int64
	stop  []func()
}

func startNameServer(t *testing.T, ns *testutil.NS, addrs ...netip.Addr) *nameServer {
	t.Helper()
	s := &nameServer{}
	serve := func(server *dns.Server) {
		started := make(chan struct{})
		server.Handler, server.NotifyStartedFunc = s, func() { close(started) }
		go func() { _ = server.ActivateAndServe() }()
		<-started
		s.stop = append(s.stop, func() { _ = server.Shutdown() })
	}
	for _, a := range addrs {
		at := netip.AddrPortFrom(a, 53).String()
		ns.MustDo(t, func() error {
			c, err := net.ListenPacket("udp", at)
			if err == nil {
				serve(&dns.Server{PacketConn: c})
			}
			return err
		})
		serve(&dns.Server{Listener: ns.Listen(t, "tcp", at)})
	}
	t.Cleanup(s.close)
	return s
}

func (s *nameServer) close() {
	for _, stop := range s.stop {
		stop()
	}
	s.stop = nil
}

func (s *nameServer) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	s.asked.Add(1)
	m := new(dns.Msg).SetReply(q)
	question := q.Question[0]
	header := dns.RR_Header{Name: question.Name, Rrtype: question.Qtype, Class: dns.ClassINET, Ttl: 7}
	switch {
	case strings.HasPrefix(question.Name, "silent."):
		return
	case strings.HasPrefix(question.Name, "missing."), question.Qtype == dns.TypeMX:
		m.Rcode = dns.RcodeNameError
	case question.Qtype == dns.TypeTXT:
		for i := range 60 {
			m.Answer = append(m.Answer, &dns.TXT{Hdr: header, Txt: []string{fmt.Sprintf("%d %s", i, w.LocalAddr().Network())}})
		}
		if w.LocalAddr().Network() == "udp" {
			m.Truncate(512)
		}
	case question.Qtype == dns.TypeA:
		m.Answer = append(m.Answer, &dns.A{Hdr: header, A: foreign4.AsSlice()})
	case question.Qtype == dns.TypeAAAA:
		m.Answer = append(m.Answer, &dns.AAAA{Hdr: header, AAAA: foreign6.AsSlice()})
	}
	_ = w.WriteMsg(m)
}

// ask sends one query from inside a pod, over a connected socket: what comes from elsewhere it does not hear.
func ask(p *lab.Pod, network string, server netip.Addr, name string, qtype, size uint16) (*dns.Msg, error) {
	conn, err := inside(p).Dial(context.Background(), network, netip.AddrPortFrom(server, 53).String())
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(6 * time.Second))
	m := new(dns.Msg).SetQuestion(name, qtype)
	if size > 0 {
		m.SetEdns0(size, false)
	}
	c := &dns.Conn{Conn: conn, UDPSize: max(size, dns.MinMsgSize)}
	if err := c.WriteMsg(m); err != nil {
		return nil, err
	}
	reply, err := c.ReadMsg()
	if err == nil && (reply.Id != m.Id || len(reply.Question) != 1 || reply.Question[0] != m.Question[0]) {
		err = fmt.Errorf("answer to another question: %v", reply)
	}
	return reply, err
}

// addresses asks for a name and returns what it stands for.
func addresses(p *lab.Pod, network string, server netip.Addr, name string, qtype uint16) ([]string, error) {
	m, err := ask(p, network, server, name, qtype, 1232)
	if err != nil {
		return nil, err
	}
	if m.Rcode != dns.RcodeSuccess {
		return nil, errors.New(dns.RcodeToString[m.Rcode])
	}
	var found []string
	for _, rr := range m.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			found = append(found, rr.A.String())
		case *dns.AAAA:
			found = append(found, rr.AAAA.String())
		}
	}
	slices.Sort(found)
	return found, nil
}

func wantAddresses(p *lab.Pod, network string, server netip.Addr, name string, qtype uint16, want ...string) error {
	got, err := addresses(p, network, server, name, qtype)
	if err != nil || !slices.Equal(got, want) {
		return fmt.Errorf("%s %s %s of %s: got %v, %v, want %v", network, dns.TypeToString[qtype], name, server, got, err, want)
	}
	return nil
}

// newAsker brings up a mesh with a name server outside, and a pod whose queries are captured.
func newAsker(t *testing.T) (*mesh, *lab.Pod, *nameServer) {
	m := newMesh(t)
	m.write("dns.yaml", dnsManifests)
	m.write("asker.yaml", fmt.Sprintf(askerManifest, true))
	asker := m.addPod(0, "asker", "mesh")
	outside := &testutil.NS{Name: m.NS("outside"), Path: "/run/netns/" + m.NS("outside")}
	server := startNameServer(t, outside, lab.OutsideAddr4, lab.OutsideAddr6)
	testutil.Eventually(t, effect, func() error {
		return wantAddresses(asker, "udp", lab.OutsideAddr4, "web.mesh.svc.cluster.local.", dns.TypeA, "10.96.0.53")
	})
	return m, asker, server
}

func TestPodsQueriesAreAnswered(t *testing.T) {
	m, asker, server := newAsker(t)
	a, aaaa := dns.TypeA, dns.TypeAAAA
	inside(asker).MustDo(t, func() error { // an app that has all of port 53 for itself is no obstacle
		c, err := net.ListenPacket("udp", "[::]:53")
		if err == nil {
			t.Cleanup(func() { _ = c.Close() })
		}
		return err
	})
	before := server.asked.Load()
	for _, at := range []netip.Addr{lab.OutsideAddr4, lab.OutsideAddr6} {
		for _, network := range []string{"udp", "tcp"} {
			for _, err := range []error{
				wantAddresses(asker, network, at, "web.", a, "10.96.0.53"),
				wantAddresses(asker, network, at, "web.mesh.", aaaa, "fd00:96::53"),
				wantAddresses(asker, network, at, "Web.Mesh.Svc.Cluster.Local.", a, "10.96.0.53"),
				wantAddresses(asker, network, at, "single.mesh.svc.cluster.local.", aaaa),
				wantAddresses(asker, network, at, "headless.mesh.svc.cluster.local.", a, m.server.Addr(4).String()),
			} {
				if err != nil {
					t.Error(err)
				}
			}
		}
	}
	if n := server.asked.Load() - before; n != 0 {
		t.Errorf("the server was asked %d times for names of the mesh", n)
	}
	for _, at := range []netip.Addr{lab.OutsideAddr4, lab.OutsideAddr6} {
		for _, network := range []string{"udp", "tcp"} {
			for _, err := range []error{
				wantAddresses(asker, network, at, "www.example.org.", a, foreign4.String()),
				wantAddresses(asker, network, at, "www.example.org.", aaaa, foreign6.String()),
			} {
				if err != nil {
					t.Error(err)
				}
			}
			if reply, err := ask(asker, network, at, "missing.example.org.", a, 0); err != nil || reply.Rcode != dns.RcodeNameError {
				t.Errorf("%s: a name that does not exist: %v, %v", network, reply, err)
			}
		}
	}
	if n := server.asked.Load() - before; n != 12 {
		t.Errorf("the server was asked %d times, want 12", n)
	}
	// The server knows neither name, but one of them exists.
	for name, want := range map[string]int{"web.mesh.svc.cluster.local.": dns.RcodeSuccess, "www.example.org.": dns.RcodeNameError} {
		for _, network := range []string{"udp", "tcp"} {
			if reply, err := ask(asker, network, lab.OutsideAddr4, name, dns.TypeMX, 0); err != nil || reply.Rcode != want || len(reply.Answer) != 0 {
				t.Errorf("%s MX of %s: got %v, %v, want %s", network, name, reply, err, dns.RcodeToString[want])
			}
		}
	}
	if err := wantAddresses(m.client, "udp", lab.OutsideAddr4, "web.mesh.svc.cluster.local.", a, foreign4.String()); err != nil {
		t.Errorf("a pod without the annotation: %v", err)
	}
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return inside(asker).Dial(ctx, network, netip.AddrPortFrom(lab.OutsideAddr4, 53).String())
	}}
	if got, err := resolver.LookupNetIP(t.Context(), "ip", "web.mesh.svc.cluster.local."); err != nil || len(got) != 2 {
		t.Errorf("Go's resolver: %v, %v", got, err)
	}
	metrics, err := m.Nodes[0].Metrics()
	m.must(err)
	for _, series := range []string{"istio_dns_requests_total", "istio_dns_upstream_requests_total", "istio_dns_upstream_request_duration_seconds_bucket"} {
		if !strings.Contains(metrics, series+`{`) {
			t.Errorf("no metric %s", series)
		}
	}
}
