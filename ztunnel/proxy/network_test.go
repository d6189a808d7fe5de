// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-mesh/sluice/internal/testutil"
	"github.com/sluice-mesh/sluice/ztunnel/discovery"
	"github.com/sluice-mesh/sluice/ztunnel/hbone"
)

// on puts a workload on the network "far", behind gw, and takes its addresses away unless it has no gateway.
func on(gw *discovery.Gateway) func(*discovery.Workload) {
	return func(w *discovery.Workload) {
		w.Network, w.NetworkGateway = "far", gw
		if gw != nil {
			w.Addresses = nil
		}
	}
}

func farGateway(ip string) *discovery.Gateway {
	return &discovery.Gateway{Address: discovery.NetworkAddr{Network: "far", Addr: netip.MustParseAddr(ip)}, Port: 15008}
}

func sans(accounts ...string) func(*discovery.Service) {
	return func(s *discovery.Service) {
		for _, account := range accounts {
			s.SubjectAltNames = append(s.SubjectAltNames, "spiffe://cluster.local/ns/default/sa/"+account)
		}
	}
}

func TestRoutesToOtherNetworks(t *testing.T) {
	gatewayVIP := func(s *discovery.Service) {
		s.VIPs = []discovery.NetworkAddr{{Network: "far", Addr: netip.MustParseAddr("10.9.9.9")}}
	}
	named := func(host string) func(*discovery.Workload) {
		return func(w *discovery.Workload) { w.Hostname, w.Network, w.Addresses = host, "far", nil }
	}
	failover := func(s *discovery.Service) {
		s.LoadBalancing = discovery.LoadBalancing{Mode: discovery.ModeFailover, RoutingPreference: []discovery.Scope{discovery.ScopeNetwork}}
	}
	byWaypoint := func(name string) func(*discovery.Service) {
		return func(s *discovery.Service) { s.Waypoint = gatewayNamed(name) }
	}
	port := func(p uint16, gw *discovery.Gateway) *discovery.Gateway {
		gw.Port = p
		return gw
	}
	store := storeOf(
		pod("client", "10.0.0.1"), pod("near", "10.0.0.2", serving("failover", 80, 8080)),
		pod("gateway", "10.9.0.9", on(nil)),
		pod("gateway-pod", "10.9.0.8", on(nil), serving("eastwest", 15008, 15009)),
		pod("gateway-name", "10.9.0.1", named("eastwest.example.com")),
		pod("a", "10.9.0.1", on(farGateway("10.9.0.9")), serving("byaddr", 80, 8080), serving("failover", 80, 8080), serving("nosans", 80, 8080)),
		pod("b", "10.9.0.1", on(farGateway("10.9.9.9")), serving("byvip", 80, 8080)),
		pod("c", "10.9.0.1", on(gatewayNamed("eastwest")), serving("byname", 80, 8080)),
		pod("d", "10.9.0.1", on(port(15443, &discovery.Gateway{Hostname: discovery.ServiceKey{Namespace: "default", Hostname: "eastwest.example.com"}})), serving("byhost", 80, 8080)),
		pod("e", "10.9.0.4", on(nil), serving("nogateway", 80, 8080)),
		pod("f", "10.9.0.1", on(farGateway("10.9.0.77")), serving("lostgateway", 80, 8080)),
		pod("g", "10.9.0.1", on(farGateway("10.9.0.9")), serving("farwaypoint", 15008, 15008)),
		pod("behind", "10.0.0.5", withWaypoint(gatewayNamed("farwaypoint"))),
		service("eastwest", "", []uint16{15008, 15009}, gatewayVIP, sans("twin")), service("farwaypoint", "10.1.0.99", []uint16{15008, 15008}),
		service("byaddr", "10.1.0.1", []uint16{80, 8080}, sans("a")), service("byvip", "10.1.0.2", []uint16{80, 8080}, sans("b", "b2")),
		service("byname", "10.1.0.3", []uint16{80, 8080}, sans("c")), service("byhost", "10.1.0.4", []uint16{80, 8080}, sans("d")),
		service("nosans", "10.1.0.5", []uint16{80, 8080}), service("nogateway", "10.1.0.6", []uint16{80, 8080}, sans("e")),
		service("lostgateway", "10.1.0.7", []uint16{80, 8080}, sans("f")),
		service("failover", "10.1.0.8", []uint16{80, 8080}, sans("a"), failover),
		service("waypointed", "10.1.0.9", []uint16{80, 8080}, sans("g"), byWaypoint("farwaypoint")),
	)
	r := &router{store: store}
	src := store.WorkloadByUID("Kubernetes//Pod/default/client")
	through := func(dial, expected, workload, service, inner string) wanted {
		return wanted{
			Carried: VerdictMTLS, Dial: dial, Authority: service + ".default.svc.cluster.local:80", Expected: expected,
			Workload: workload, Service: service, Inner: inner,
		}
	}
	for _, tc := range []struct {
		name, to string
		want     wanted
	}{
		{"gateway by address", "10.1.0.1:80", through("10.9.0.9:15008", "gateway", "gateway", "byaddr", "a")},
		{"gateway by VIP, port mapped", "10.1.0.2:80", through("10.9.0.8:15009", "gateway-pod twin", "gateway-pod", "byvip", "b b2")},
		{"gateway by host name of a service", "10.1.0.3:80", through("10.9.0.8:15009", "gateway-pod twin", "gateway-pod", "byname", "c")},
		{"gateway by host name of a workload without addresses", "10.1.0.4:80", through("invalid AddrPort", "gateway-name", "gateway-name", "byhost", "d")},
		{"service without identities", "10.1.0.5:80", wanted{Refused: VerdictOtherNetwork}},
		{"no gateway", "10.1.0.6:80", wanted{Refused: VerdictNoAddress}},
		{"unknown gateway", "10.1.0.7:80", wanted{Refused: VerdictNoAddress}},
		{"port the service does not have", "10.1.0.1:81", wanted{Refused: VerdictNoEndpoint}},
		{"an endpoint of this network goes first", "10.1.0.8:80", wanted{
			Carried: VerdictMTLS, Dial: "10.0.0.2:15008", Authority: "10.0.0.2:8080", Expected: "a near", Workload: "near", Service: "failover"}},
		{"waypoint on another network", "10.1.0.9:80", through("10.9.0.9:15008", "gateway", "gateway", "waypointed", "g")},
		{"the same, for a pod's address", "10.0.0.5:80", wanted{Refused: VerdictOtherNetwork}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, describe(r.outbound(src, netip.MustParseAddrPort(tc.to)))); diff != "" {
				t.Errorf("route (-want +got):\n%s", diff)
			}
		})
	}
	store.Apply(discovery.Update{RemoveAddresses: []string{"Kubernetes//Pod/default/near"}})
	want := through("10.9.0.9:15008", "gateway", "gateway", "failover", "a")
	if diff := cmp.Diff(want, describe(r.outbound(src, netip.MustParseAddrPort("10.1.0.8:80")))); diff != "" {
		t.Errorf("failover (-want +got):\n%s", diff)
	}
}

// eastWest is the gateway of a network, a process in the legacy pod: it ends the outer layer, notes what it was asked, and
// passes bytes on to the server, of which it understands nothing.
type eastWest struct {
	asked chan *hbone.ServerStream
	bytes chan []byte // the first ones of each stream
}

func startEastWest(w *world) *eastWest {
	g := &eastWest{asked: make(chan *hbone.ServerStream, 16), bytes: make(chan []byte, 16)}
	config := peerTLS(w.ca.Issue(w.t, "spiffe://cluster.local/ns/default/sa/gateway"))
	config.ClientAuth = tls.RequireAnyClientCert
	server := &hbone.Server{TLS: config, Handler: func(ctx context.Context, s *hbone.ServerStream) { g.pass(ctx, w, s) }}
	l := w.legacy.Listen(w.t, "tcp4", netip.AddrPortFrom(w.legacy.Addr4, hbonePort).String())
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _ = server.ServeConn(w.t.Context(), conn) }()
		}
	}()
	return g
}

func (g *eastWest) pass(ctx context.Context, w *world, s *hbone.ServerStream) {
	g.asked <- s
	conn, err := w.legacy.Dial(ctx, "tcp4", netip.AddrPortFrom(w.server.Addr4, hbonePort).String())
	if err != nil {
		_ = s.Reject(statusUnavailable)
		return
	}
	stream, err := s.Accept(nil)
	if err != nil {
		_ = conn.Close()
		return
	}
	first := make([]byte, 3)
	if _, err := io.ReadFull(stream, first); err != nil {
		_ = conn.Close()
		return
	}
	g.bytes <- first
	_, _ = conn.Write(first)
	_ = hbone.Splice(conn.(*net.TCPConn), stream, nil, nil)
}

// newFarWorld has the client on the default network and the server on "far", each with a ztunnel that knows only what its
// own control plane told it. The service web, at vip, is all that the client's knows of the server.
func newFarWorld(t *testing.T, vip netip.Addr, edits ...func(*discovery.Service)) (w *world, far *testProxy, g *eastWest) {
	t.Helper()
	w = newWorld(t)
	g = startEastWest(w)
	onFar := func(x *discovery.Workload) { x.Network = "far" }
	gateway := pod("gateway", w.legacy.Addr4.String(), onFar)
	server := pod("server", w.server.Addr4.String(), withAddr(w.server.Addr6.String()), onFar, serving("web", 80, 8080))

	w.server.served.Stop()
	far = w.newProxyOn("far", storeOf(gateway, server, service("web", "10.77.0.1", []uint16{80, 8080})), nil)
	w.server.served = w.serve(far, w.server, "server")
	t.Cleanup(func() { w.server.served.Stop() })

	gw := farGateway(w.legacy.Addr4.String())
	view := pod("server", "10.9.0.1", on(gw), serving("web", 80, 8080))
	w.store.Apply(discovery.Update{RemoveAddresses: []string{w.server.workload.UID}})
	w.store.Apply(discovery.Update{
		Workloads: []*discovery.Workload{gateway, view}, Services: []*discovery.Service{service("web", vip.String(), []uint16{80, 8080}, edits...)},
	})
	w.capture(vip)
	return w, far, g
}

func TestOtherNetworkIsReachedInTwoLayers(t *testing.T) {
	vip := netip.MustParseAddr("10.99.0.1")
	w, far, gateway := newFarWorld(t, vip, sans("server"))
	w.server.Echo(t, "server", netip.AddrPortFrom(w.server.Addr4, 8080).String())
	for range 2 {
		answer, err := w.client.AskFrom(netip.AddrPortFrom(vip, 80))
		if err != nil || answer.Name != "server" || answer.From.Addr() != w.legacy.Addr4 {
			t.Fatalf("got %+v, %v, want server seeing the gateway %s", answer, err, w.legacy.Addr4)
		}
		outer := <-gateway.asked
		if got := outer.Authority(); got != "web.default.svc.cluster.local:80" {
			t.Errorf("the gateway was asked for %q", got)
		}
		if got := outer.Header(networkHeader); got != "" || outer.Header("baggage") == "" {
			t.Errorf("outer request: %s is %q, want none, baggage %q, want some", networkHeader, got, outer.Header("baggage"))
		}
		if first := <-gateway.bytes; first[0] != 0x16 || first[1] != 3 {
			t.Errorf("the gateway saw %x, want a TLS handshake", first)
		}
	}
	// The far end's word, not the gateway's name, at the client; the client's word, not the gateway's, at the far end.
	w.wantLine("connection complete", `direction="outbound"`, `verdict="mtls"`, "src.identity="+clientID, "dst.identity="+serverID,
		`dst.workload="server"`, "dst.addr="+w.legacy.Addr4.String()+":15008")
	w.proxy.log = far.log
	w.wantLine("connection complete", `direction="inbound"`, `verdict="mtls"`, "src.identity="+clientID, `src.workload="client"`, `dst.workload="server"`)
	if got := far.metric("istio_tcp_connections_opened_total", `source_workload="client"`, `reporter="destination"`); got != 2 {
		t.Errorf("connections of the client, by the far end: got %v, want 2", got)
	}
	if got := far.metric("istio_tcp_connections_opened_total", `source_workload="gateway"`); got != 0 {
		t.Errorf("connections of the gateway, by the far end: got %v, want 0", got)
	}
}

// TestBurstFromAnotherNetwork: a gateway has one address, and a connection for each of its clients'.
func TestBurstFromAnotherNetwork(t *testing.T) {
	vip := netip.MustParseAddr("10.99.0.1")
	w, far, gateway := newFarWorld(t, vip, sans("server"))
	w.server.Echo(t, "server", netip.AddrPortFrom(w.server.Addr4, 8080).String())
	go drop(t, gateway.asked)
	go drop(t, gateway.bytes)
	var clients sync.WaitGroup
	for range 100 {
		clients.Go(func() {
			if _, err := w.client.AskFrom(netip.AddrPortFrom(vip, 80)); err != nil {
				t.Error(err)
			}
		})
	}
	clients.Wait()
	if got := far.metric("sluice_connection_verdicts_total", `verdict="refused-limit"`); got != 0 {
		t.Errorf("%v were refused for a limit", got)
	}
}

// drop takes what comes, until the test is over.
func drop[T any](t *testing.T, from <-chan T) {
	for {
		select {
		case <-t.Context().Done():
			return
		case <-from:
		}
	}
}

func TestWordsOfOtherNetworksMayBeSwitchedOff(t *testing.T) {
	vip := netip.MustParseAddr("10.99.0.1")
	w, far, _ := newFarWorld(t, vip, sans("server"))
	w.server.served.Stop()
	far.NoResponseBaggage = true
	w.server.served = w.serve(far, w.server, "server")
	w.server.Echo(t, "server", netip.AddrPortFrom(w.server.Addr4, 8080).String())
	if _, err := w.client.AskFrom(netip.AddrPortFrom(vip, 80)); err != nil {
		t.Fatal(err)
	}
	w.proxy.log = far.log
	w.wantLine("connection complete", `direction="inbound"`, `verdict="mtls"`, "src.identity="+clientID)
	if got := far.metric("istio_tcp_connections_opened_total", `source_workload="client"`); got != 0 {
		t.Errorf("connections labelled by their client's own word: got %v, want 0", got)
	}
}

func TestLargeTransferAndHalfCloseInTwoLayers(t *testing.T) {
	vip := netip.MustParseAddr("10.99.0.1")
	w, _, _ := newFarWorld(t, vip, sans("server"))
	l := w.server.Listen(t, "tcp4", netip.AddrPortFrom(w.server.Addr4, 8080).String())
	served := make(chan error, 1)
	go func() { served <- answerAfterFIN(l) }()
	conn := w.dial(w.client.Pod, netip.AddrPortFrom(vip, 80))
	question := strings.Repeat("0123456789abcdef", 1<<18)
	if _, err := io.WriteString(conn, question); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(conn)
	if string(got) != "got "+question || err != nil {
		t.Errorf("got %d bytes, %v, want %d", len(got), err, len(question)+4)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	testutil.Eventually(t, 5*time.Second, func() error {
		if s := w.client.served.(*podProxy).pool.Stats(); s.Conns > 1 {
			return fmt.Errorf("%d connections are open, want the outer one at most", s.Conns)
		}
		return nil
	})
}

func TestFarEndMustBeOfTheService(t *testing.T) {
	vip := netip.MustParseAddr("10.99.0.1")
	w, _, _ := newFarWorld(t, vip, sans("somebody-else", "gateway"))
	w.server.Echo(t, "server", netip.AddrPortFrom(w.server.Addr4, 8080).String())
	if err := w.mustFail(w.client.Pod, netip.AddrPortFrom(vip, 80)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
	w.wantLine(`direction="outbound"`, `verdict="refused-tls"`, "sa/server")
}

func TestFarEndsPoliciesHold(t *testing.T) {
	vip := netip.MustParseAddr("10.99.0.1")
	w, far, _ := newFarWorld(t, vip, sans("server"))
	w.server.Echo(t, "server", netip.AddrPortFrom(w.server.Addr4, 8080).String())
	far.Store.Apply(discovery.Update{Policies: []*discovery.Policy{{
		Namespace: "default", Name: "no-8080", Scope: discovery.PolicyNamespace, Action: discovery.Deny,
		Groups: []discovery.Group{{Clauses: []discovery.Clause{{Matches: []discovery.Match{{DestinationPorts: []uint16{8080}}}}}}},
	}}})
	_ = w.mustFail(w.client.Pod, netip.AddrPortFrom(vip, 80))
	w.wantLine(`direction="outbound"`, `verdict="refused-by-peer"`, "refused by the policies of web.default.svc.cluster.local:80")
}
