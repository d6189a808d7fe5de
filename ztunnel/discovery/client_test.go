// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/sluice-mesh/sluice/internal/securityapi"
	"github.com/sluice-mesh/sluice/internal/testutil"
	"github.com/sluice-mesh/sluice/internal/workloadapi"
	"github.com/sluice-mesh/sluice/ztunnel/identity"
)

func podMessage(name, addr string) *workloadapi.Workload {
	return &workloadapi.Workload{
		Uid: "c1//Pod/shop/" + name, Name: name, Namespace: "shop", ServiceAccount: name,
		Addresses: [][]byte{netip.MustParseAddr(addr).AsSlice()}, TunnelProtocol: workloadapi.TunnelProtocol_HBONE,
		Services: map[string]*workloadapi.PortList{web.String(): {Ports: []*workloadapi.Port{{ServicePort: 80, TargetPort: 8080}}}},
	}
}

func webMessage() *workloadapi.Service {
	return &workloadapi.Service{
		Name: "web", Namespace: web.Namespace, Hostname: web.Hostname, Canonical: true,
		Addresses: []*workloadapi.NetworkAddress{{Address: []byte{10, 1, 0, 1}}},
		Ports:     []*workloadapi.Port{{ServicePort: 80, TargetPort: 8080}},
	}
}

func policyMessage(name string, sources ...*securityapi.Address) *securityapi.Authorization {
	return &securityapi.Authorization{
		Name: name, Namespace: "shop", Scope: securityapi.Scope_NAMESPACE, Action: securityapi.Action_DENY,
		Groups: []*securityapi.Group{{Rules: []*securityapi.Rules{{Matches: []*securityapi.Match{{SourceIps: sources}}}}}},
	}
}

func ip(length uint32, b ...byte) *securityapi.Address {
	return &securityapi.Address{Address: b, Length: length}
}

func isSynced(c *Client) bool {
	select {
	case <-c.Synced():
		return true
	default:
		return false
	}
}

func TestFirstRequests(t *testing.T) {
	h := start(t, func(c *Config) { c.Node.Metadata = map[string]any{"DNS_CAPTURE": "true"}; c.Node.Network = "net1" })
	s := h.accept(t)
	// Policies before the workloads that name them, for answers come in the order of questions.
	for _, url := range []string{AuthorizationType, AddressType} {
		r := s.next(t)
		if r.GetTypeUrl() != url {
			t.Fatalf("request is for %s, want %s", r.GetTypeUrl(), url)
		}
		if got, want := r.GetNode().GetId(), "ztunnel~1.1.1.1~ztunnel-x.istio-system~istio-system.svc.cluster.local"; got != want {
			t.Errorf("node id is %q, want %q", got, want)
		}
		if n := len(r.GetResourceNamesSubscribe()) + len(r.GetResourceNamesUnsubscribe()); n != 0 {
			t.Errorf("%s: %d names, want none: that is what a wildcard is", url, n)
		}
		if len(r.GetInitialResourceVersions()) != 0 || r.GetResponseNonce() != "" {
			t.Errorf("%s: first request has versions or nonce: %v", url, r)
		}
		metadata := r.GetNode().GetMetadata().AsMap()
		want := map[string]any{
			"NAME": "ztunnel-x", "NAMESPACE": "istio-system", "INSTANCE_IPS": "1.1.1.1", "NODE_NAME": "node1",
			"CLUSTER_ID": "c1", "NETWORK": "net1", "DNS_CAPTURE": "true",
		}
		if !maps.Equal(metadata, want) {
			t.Errorf("metadata is %v, want %v", metadata, want)
		}
	}
	if got := s.headers.Get("clusterid"); len(got) != 1 || got[0] != "c1" {
		t.Errorf("clusterid is %v, want c1", got)
	}
}

func TestACKAndSync(t *testing.T) {
	h := start(t)
	s := h.accept(t)
	s.subscribed(t)
	s.wantACK(t, response(AddressType, "n1", serviceResource("1", webMessage()), workloadResource("1", podMessage("a", "10.0.0.1"))))
	if isSynced(h.client) {
		t.Error("synced after one type")
	}
	s.wantACK(t, response(AuthorizationType, "n2"))
	select {
	case <-h.client.Synced():
	case <-time.After(patience):
		t.Fatal("not synced after both types")
	}
	endpoints := h.store.Endpoints(web)
	if names(endpoints) != "a" || endpoints[0].Ports[80] != 8080 {
		t.Errorf("endpoints are %+v", endpoints)
	}
	s.wantACK(t, response(AddressType, "n3", workloadResource("2", podMessage("b", "10.0.0.2"))))
	wantEndpoints(t, h.store, "a b")
	h.counters.mu.Lock()
	defer h.counters.mu.Unlock()
	if h.counters.messages[AddressType] != 2 || h.counters.messages[AuthorizationType] != 1 || h.counters.bytes[AddressType] == 0 {
		t.Errorf("counted %v messages, %v bytes", h.counters.messages, h.counters.bytes)
	}
}

func TestRemovals(t *testing.T) {
	h := start(t)
	s := h.accept(t)
	s.subscribed(t)
	s.wantACK(t, response(AddressType, "n1", serviceResource("1", webMessage()), workloadResource("1", podMessage("a", "10.0.0.1"))))
	s.wantACK(t, response(AuthorizationType, "n2", policyResource("1", policyMessage("p", ip(8, 10, 0, 0, 0)))))
	if got, want := contents(h.store), "c1//Pod/shop/a shop/web.shop.svc.cluster.local shop/p"; got != want {
		t.Fatalf("have %q, want %q", got, want)
	}
	r := response(AddressType, "n3")
	r.RemovedResources = []string{"c1//Pod/shop/a", web.String(), "c1//Pod/shop/unknown"}
	s.wantACK(t, r)
	r = response(AuthorizationType, "n4")
	r.RemovedResources = []string{"shop/p", "shop/unknown"}
	s.wantACK(t, r)
	if got := contents(h.store); got != "" {
		t.Errorf("have %q, want nothing", got)
	}
}

// TestPartialNACKAppliesGood: the issue's bad input. Each bad resource is named with its reason, the others apply.
func TestPartialNACKAppliesGood(t *testing.T) {
	h := start(t)
	s := h.accept(t)
	s.subscribed(t)
	short := podMessage("short", "10.0.0.8")
	short.Addresses = [][]byte{{1, 2, 3}}
	legacy := podMessage("legacy", "10.0.0.9")
	legacy.TunnelProtocol = workloadapi.TunnelProtocol_LEGACY_ISTIO_MTLS
	garbage := workloadResource("1", podMessage("garbage", "10.0.0.7"))
	garbage.Resource.Value = []byte{0xff, 0xff}
	foreign := workloadResource("1", podMessage("foreign", "10.0.0.6"))
	foreign.Resource.TypeUrl = "type.googleapis.com/some.Thing"
	answer := s.exchange(t, response(AddressType, "n1",
		workloadResource("1", podMessage("a", "10.0.0.1")), workloadResource("1", short), workloadResource("1", legacy),
		garbage, foreign, &discoveryv3.Resource{Name: "hollow"}, workloadResource("1", podMessage("b", "10.0.0.2")), serviceResource("1", webMessage())))
	message := answer.GetErrorDetail().GetMessage()
	t.Log(message)
	for _, want := range []string{
		`resource 1 "c1//Pod/shop/short": addresses[0]: address of 3 bytes, want 4 or 16`,
		`resource 2 "c1//Pod/shop/legacy": tunnel_protocol: LEGACY_ISTIO_MTLS is not supported`,
		`resource 3 "c1//Pod/shop/garbage": proto: cannot parse invalid wire-format data`,
		`resource 4 "c1//Pod/shop/foreign": content is "type.googleapis.com/some.Thing", want "type.googleapis.com/istio.workload.Address"`,
		`resource 5 "hollow": no content`,
	} {
		if !strings.Contains(message, want) {
			t.Errorf("NACK does not say %s", want)
		}
	}
	if code := answer.GetErrorDetail().GetCode(); code != 0 {
		t.Errorf("code is %d, want 0", code)
	}
	wantEndpoints(t, h.store, "a b")

	answer = s.exchange(t, response(AuthorizationType, "n2",
		policyResource("1", policyMessage("long", ip(33, 10, 0, 0, 0))), policyResource("1", policyMessage("good", ip(8, 10, 0, 0, 0))),
		policyResource("1", policyMessage("odd", ip(8, 10, 0, 0)))))
	message = answer.GetErrorDetail().GetMessage()
	t.Log(message)
	for _, want := range []string{
		`resource 0 "shop/long": groups[0]: rules[0].matches[0]: source_ips[0]: prefix 10.0.0.0/33 is longer than 32 bits`,
		`resource 2 "shop/odd": groups[0]: rules[0].matches[0]: source_ips[0]: address of 3 bytes, want 4 or 16`,
	} {
		if !strings.Contains(message, want) {
			t.Errorf("NACK does not say %s", want)
		}
	}
	if got := h.store.Policies(); len(got) != 1 || got[0].Name != "good" {
		t.Errorf("policies are %v, want the good one", got)
	}
	if !isSynced(h.client) {
		t.Error("not synced: a refusal answers too")
	}
}

func TestUnknownTypeIsRefused(t *testing.T) {
	h := start(t)
	s := h.accept(t)
	s.subscribed(t)
	answer := s.exchange(t, response("type.googleapis.com/some.Thing", "n1"))
	if got, want := answer.GetErrorDetail().GetMessage(), `type "type.googleapis.com/some.Thing" was not asked for`; got != want {
		t.Errorf("NACK says %q, want %q", got, want)
	}
	s.wantACK(t, response(AddressType, "n2", workloadResource("1", podMessage("a", "10.0.0.1"))))
}

func TestBadUpdateKeepsTheOldResource(t *testing.T) {
	h := start(t)
	s := h.accept(t)
	s.subscribed(t)
	s.wantACK(t, response(AddressType, "n1", workloadResource("1", podMessage("a", "10.0.0.1"))))
	bad := podMessage("a", "10.0.0.2")
	bad.TunnelProtocol = 77
	if s.exchange(t, response(AddressType, "n2", workloadResource("2", bad))).GetErrorDetail() == nil {
		t.Error("accepted")
	}
	if w := h.store.WorkloadByAddr("", netip.MustParseAddr("10.0.0.1")); w == nil {
		t.Error("the old resource is gone")
	}
	s.end <- nil
	held := h.accept(t).subscribed(t)[AddressType].GetInitialResourceVersions()
	if held["c1//Pod/shop/a"] != "1" {
		t.Errorf("held versions are %v, want the old one's", held)
	}
}

func TestReconnectSendsVersions(t *testing.T) {
	h := start(t)
	s := h.accept(t)
	s.subscribed(t)
	s.wantACK(t, response(AddressType, "n1", serviceResource("s1", webMessage()), workloadResource("w1", podMessage("a", "10.0.0.1")), workloadResource("w1", podMessage("b", "10.0.0.2"))))
	s.wantACK(t, response(AuthorizationType, "n2", policyResource("p1", policyMessage("p", ip(8, 10, 0, 0, 0)))))
	r := response(AddressType, "n3", workloadResource("w2", podMessage("a", "10.0.0.1")))
	r.RemovedResources = []string{"c1//Pod/shop/b"}
	s.wantACK(t, r)
	s.end <- nil
	s = h.accept(t)
	first := s.subscribed(t)
	if got, want := first[AddressType].GetInitialResourceVersions(), map[string]string{"c1//Pod/shop/a": "w2", web.String(): "s1"}; !maps.Equal(got, want) {
		t.Errorf("held addresses are %v, want %v", got, want)
	}
	if got, want := first[AuthorizationType].GetInitialResourceVersions(), map[string]string{"shop/p": "p1"}; !maps.Equal(got, want) {
		t.Errorf("held policies are %v, want %v", got, want)
	}
	if first[AddressType].GetNode() == nil || first[AuthorizationType].GetNode() == nil {
		t.Error("no node in the first requests of the second stream")
	}
	if got, want := contents(h.store), "c1//Pod/shop/a shop/web.shop.svc.cluster.local shop/p"; got != want {
		t.Errorf("after reconnecting have %q, want %q", got, want)
	}
	sub := h.store.Subscribe()
	defer sub.Close()
	// As istiod does with policies: everything again, and removals by name.
	r = response(AuthorizationType, "m1", policyResource("p1", policyMessage("p", ip(8, 10, 0, 0, 0))))
	s.wantACK(t, r)
	select {
	case <-sub.C():
		t.Errorf("the same policy again counts as a change: %+v", sub.Take())
	default:
	}
	r = response(AddressType, "m2")
	r.RemovedResources = []string{"c1//Pod/shop/a"}
	s.wantACK(t, r)
	wantEndpoints(t, h.store, "")
	if got := h.counters.ended(); !slices.Equal(got, []string{ReasonComplete}) {
		t.Errorf("terminations are %v, want one Complete", got)
	}
}

func TestStateIsKeptWhileCutOff(t *testing.T) {
	h := &harness{ads: &ads{}, store: NewStore(), counters: &counters{}, socket: filepath.Join(t.TempDir(), "xds.sock")}
	stop := serveADS(t, h.ads, mustListen(t, h.socket))
	h.run(t, Config{ControlPlane: identity.ControlPlane{Address: "unix://" + h.socket}, Store: h.store, Counters: h.counters, BackoffMax: 20 * time.Millisecond})
	s := h.accept(t)
	s.subscribed(t)
	s.wantACK(t, response(AddressType, "n1", workloadResource("1", podMessage("a", "10.0.0.1"))))
	s.wantACK(t, response(AuthorizationType, "n2"))
	stop()
	testutil.Eventually(t, patience, func() error {
		if got := h.counters.ended(); !slices.Contains(got, ReasonConnectionError) {
			return fmt.Errorf("terminations are %v, want a ConnectionError", got)
		}
		return nil
	})
	if got := contents(h.store); got != "c1//Pod/shop/a" {
		t.Errorf("while cut off have %q", got)
	}
	if got := h.counters.ended()[0]; got != ReasonReconnect {
		t.Errorf("first termination is %s, want Reconnect", got)
	}
	serveADS(t, h.ads, mustListen(t, h.socket))
	if held := h.accept(t).subscribed(t)[AddressType].GetInitialResourceVersions(); held["c1//Pod/shop/a"] != "1" {
		t.Errorf("held versions are %v", held)
	}
}

func TestTerminationReason(t *testing.T) {
	for _, test := range []struct {
		err      error
		answered bool
		want     string
	}{
		{status.Error(codes.Unavailable, "connection refused"), false, ReasonConnectionError},
		{status.Error(codes.Unavailable, "transport is closing"), true, ReasonReconnect},
		{status.Error(codes.Canceled, ""), true, ReasonReconnect},
		{status.Error(codes.Unknown, ""), true, ReasonReconnect},
		{status.Error(codes.PermissionDenied, ""), true, ReasonError},
		{status.Error(codes.ResourceExhausted, ""), true, ReasonError},
		{errors.New("address"), false, ReasonError},
	} {
		if got := terminationReason(test.err, test.answered); got != test.want {
			t.Errorf("%v answered %v: %s, want %s", test.err, test.answered, got, test.want)
		}
	}
}

func TestRefusalsBackOff(t *testing.T) {
	h := &harness{ads: &ads{}, store: NewStore(), counters: &counters{}, socket: filepath.Join(t.TempDir(), "xds.sock")}
	var times []time.Time
	refused := make(chan struct{}, 100)
	h.refuse = func() error {
		times = append(times, time.Now()) // one stream at a time
		refused <- struct{}{}
		return status.Error(codes.PermissionDenied, "who are you")
	}
	serveADS(t, h.ads, mustListen(t, h.socket))
	h.run(t, Config{ControlPlane: identity.ControlPlane{Address: "unix://" + h.socket}, Store: h.store, Counters: h.counters, BackoffMin: 2 * time.Millisecond, BackoffMax: 64 * time.Millisecond})
	for range 8 {
		select {
		case <-refused:
		case <-time.After(patience):
			t.Fatal("no further attempt")
		}
	}
	h.stop()
	// Waits are 2 4 8 16 32 64 64 ms give or take a fifth; connecting comes on top.
	for i, least := range []time.Duration{1600, 3200, 6400, 12800, 25600, 51200, 51200} {
		if got := times[i+1].Sub(times[i]); got < least*time.Microsecond {
			t.Errorf("attempt %d came after %v, want at least %v", i+1, got, least*time.Microsecond)
		}
	}
	if got := h.counters.ended()[0]; got != ReasonError {
		t.Errorf("termination is %s, want Error", got)
	}
}

func TestBackoffBounds(t *testing.T) {
	c, err := NewClient(Config{ControlPlane: identity.ControlPlane{Address: "https://istiod:15012"}})
	if err != nil {
		t.Fatal(err)
	}
	for failures, want := range map[int]time.Duration{0: 10 * time.Millisecond, 1: 20 * time.Millisecond, 5: 320 * time.Millisecond, 11: 15 * time.Second, 1000: 15 * time.Second} {
		if got := c.backoff(failures); got < want*8/10 || got > want*12/10 {
			t.Errorf("wait after %d failures is %v, want %v give or take a fifth", failures, got, want)
		}
	}
}

// TestLargeResponse: far more than gRPC's default of 4 MiB in one message.
func TestLargeResponse(t *testing.T) {
	h := start(t)
	s := h.accept(t)
	s.subscribed(t)
	var resources []*discoveryv3.Resource
	size := 0
	for i := range 6000 {
		w := podMessage(fmt.Sprint("pod", i), netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}).String())
		w.CanonicalRevision = strings.Repeat("x", 1500)
		resources = append(resources, workloadResource("1", w))
		size += len(resources[i].GetResource().GetValue())
	}
	if size < 8<<20 {
		t.Fatalf("only %d bytes", size)
	}
	s.wantACK(t, response(AddressType, "n1", resources...))
	if got := len(h.store.Workloads()); got != 6000 {
		t.Errorf("%d workloads, want 6000", got)
	}
}

func TestOverTLSWithToken(t *testing.T) {
	dir := t.TempDir()
	ca := testutil.NewCA(t)
	root, token := filepath.Join(dir, "root.pem"), filepath.Join(dir, "token")
	for path, text := range map[string][]byte{root: ca.PEM(), token: []byte("secret\n")} {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cert := ca.Issue(t, "spiffe://cluster.local/ns/istio-system/sa/istiod", dnsName("istiod.example"))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &harness{ads: &ads{}, store: NewStore(), counters: &counters{}}
	serveADS(t, h.ads, listener, grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2"}})))
	h.run(t, Config{Store: h.store, Counters: h.counters, ControlPlane: identity.ControlPlane{
		Address: "https://" + listener.Addr().String(), ServerName: "istiod.example", RootCA: root, Token: token,
	}})
	s := h.accept(t)
	if got := s.headers.Get("authorization"); len(got) != 1 || got[0] != "Bearer secret" {
		t.Errorf("authorization is %v", got)
	}
	s.subscribed(t)
	s.wantACK(t, response(AddressType, "n1", workloadResource("1", podMessage("a", "10.0.0.1"))))
}

func TestNewClientRefusesNonsense(t *testing.T) {
	for want, cfg := range map[string]Config{
		"control plane address": {ControlPlane: identity.ControlPlane{Address: "http://x"}},
		"node metadata":         {ControlPlane: identity.ControlPlane{Address: "unix:///x"}, Node: Node{Metadata: map[string]any{"X": make(chan int)}}},
	} {
		if _, err := NewClient(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("NewClient = %v, want error with %q", err, want)
		}
	}
}

func TestMetadataFromEnv(t *testing.T) {
	got, err := MetadataFromEnv([]string{"PATH=/bin", "ISTIO_META_NETWORK=n1", "ISTIO_METAJSON_LABELS={\"a\":\"b\"}", "ISTIO_META_EMPTY="})
	if err != nil {
		t.Fatal(err)
	}
	if got["NETWORK"] != "n1" || got["EMPTY"] != "" || len(got) != 3 || fmt.Sprint(got["LABELS"]) != "map[a:b]" {
		t.Errorf("got %v", got)
	}
	if _, err := MetadataFromEnv([]string{"ISTIO_METAJSON_X={"}); err == nil || !strings.HasPrefix(err.Error(), "ISTIO_METAJSON_X: ") {
		t.Errorf("bad JSON: %v", err)
	}
}

func TestRunEndsWithItsContextWhileConnecting(t *testing.T) {
	c, err := NewClient(Config{ControlPlane: identity.ControlPlane{Address: "unix://" + filepath.Join(t.TempDir(), "none.sock")}, Store: NewStore()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := c.Run(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Run = %v, want deadline exceeded", err)
	}
}

func dnsName(name string) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.DNSNames = []string{name} }
}
