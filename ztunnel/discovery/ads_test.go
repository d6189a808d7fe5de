// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sluice-mesh/sluice/internal/securityapi"
	"github.com/sluice-mesh/sluice/internal/workloadapi"
	"github.com/sluice-mesh/sluice/ztunnel/identity"
)

// patience bounds every wait of a test.
const patience = 20 * time.Second

// ads is a control plane that a test speaks through, one session per stream.
type ads struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	sessions chan *session
	// refuse, if set, ends each stream before anything is read.
	refuse func() error
}

// session is one stream: what the client asks, and what the test answers.
type session struct {
	stream   grpc.BidiStreamingServer[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]
	headers  metadata.MD
	requests chan *discoveryv3.DeltaDiscoveryRequest
	end      chan error
}

func (a *ads) DeltaAggregatedResources(stream grpc.BidiStreamingServer[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]) error {
	if a.refuse != nil {
		return a.refuse()
	}
	headers, _ := metadata.FromIncomingContext(stream.Context())
	s := &session{stream: stream, headers: headers, requests: make(chan *discoveryv3.DeltaDiscoveryRequest, 100), end: make(chan error, 1)}
	a.sessions <- s
	go func() {
		defer close(s.requests)
		for {
			r, err := stream.Recv()
			if err != nil {
				return
			}
			s.requests <- r
		}
	}()
	select {
	case err := <-s.end:
		return err
	case <-stream.Context().Done():
		return stream.Context().Err()
	}
}

// serveADS runs a control plane on a unix socket; stop ends it early.
func serveADS(t *testing.T, a *ads, listener net.Listener, options ...grpc.ServerOption) (stop func()) {
	t.Helper()
	if a.sessions == nil {
		a.sessions = make(chan *session, 10)
	}
	server := grpc.NewServer(options...)
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(server, a)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener)
	}()
	stop = sync.OnceFunc(func() { server.Stop(); <-done })
	t.Cleanup(stop)
	return stop
}

// harness is a client under test with its control plane on a unix socket.
type harness struct {
	*ads
	store    *Store
	client   *Client
	counters *counters
	socket   string
	stop     func() // of the client
}

func start(t *testing.T, edits ...func(*Config)) *harness {
	t.Helper()
	h := &harness{ads: &ads{}, store: NewStore(), counters: &counters{}, socket: filepath.Join(t.TempDir(), "xds.sock")}
	serveADS(t, h.ads, mustListen(t, h.socket))
	cfg := Config{
		ControlPlane: identity.ControlPlane{Address: "unix://" + h.socket, ClusterID: "c1"},
		Node:         Node{PodName: "ztunnel-x", Namespace: "istio-system", NodeName: "node1", ClusterID: "c1"},
		Store:        h.store, Counters: h.counters, BackoffMax: 50 * time.Millisecond,
	}
	for _, edit := range edits {
		edit(&cfg)
	}
	h.run(t, cfg)
	return h
}

func (h *harness) run(t *testing.T, cfg Config) {
	t.Helper()
	client, err := NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- client.Run(ctx) }()
	h.client = client
	h.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != context.Canceled {
				t.Errorf("Run = %v, want context.Canceled", err)
			}
		case <-time.After(patience):
			t.Error("Run did not end with its context")
		}
	})
	t.Cleanup(h.stop)
}

func mustListen(t *testing.T, socket string) net.Listener {
	t.Helper()
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	return listener
}

// accept returns the client's next stream.
func (a *ads) accept(t *testing.T) *session {
	t.Helper()
	select {
	case s := <-a.sessions:
		return s
	case <-time.After(patience):
		t.Fatal("the client opened no stream")
		return nil
	}
}

// subscribed reads the first request of each type.
func (s *session) subscribed(t *testing.T) map[string]*discoveryv3.DeltaDiscoveryRequest {
	t.Helper()
	byType := map[string]*discoveryv3.DeltaDiscoveryRequest{}
	for range 2 {
		r := s.next(t)
		byType[r.GetTypeUrl()] = r
	}
	return byType
}

func (s *session) next(t *testing.T) *discoveryv3.DeltaDiscoveryRequest {
	t.Helper()
	select {
	case r, ok := <-s.requests:
		if !ok {
			t.Fatal("the client ended the stream")
		}
		return r
	case <-time.After(patience):
		t.Fatal("the client sent nothing")
	}
	return nil
}

// exchange sends a response and returns the client's answer to it.
func (s *session) exchange(t *testing.T, r *discoveryv3.DeltaDiscoveryResponse) *discoveryv3.DeltaDiscoveryRequest {
	t.Helper()
	if err := s.stream.Send(r); err != nil {
		t.Fatal(err)
	}
	answer := s.next(t)
	if answer.GetTypeUrl() != r.GetTypeUrl() || answer.GetResponseNonce() != r.GetNonce() {
		t.Errorf("answer is for %q nonce %q, want %q nonce %q", answer.GetTypeUrl(), answer.GetResponseNonce(), r.GetTypeUrl(), r.GetNonce())
	}
	return answer
}

// wantACK exchanges and requires that nothing was refused.
func (s *session) wantACK(t *testing.T, r *discoveryv3.DeltaDiscoveryResponse) {
	t.Helper()
	if detail := s.exchange(t, r).GetErrorDetail(); detail != nil {
		t.Errorf("nonce %q was refused: %s", r.GetNonce(), detail.GetMessage())
	}
}

// response of a type; the nonce says which.
func response(typeURL, nonce string, resources ...*discoveryv3.Resource) *discoveryv3.DeltaDiscoveryResponse {
	return &discoveryv3.DeltaDiscoveryResponse{TypeUrl: typeURL, Nonce: nonce, Resources: resources}
}

func resource(typeURL, name, version string, m proto.Message) *discoveryv3.Resource {
	raw, err := proto.Marshal(m)
	if err != nil {
		panic(err) // test messages are well formed
	}
	return &discoveryv3.Resource{Name: name, Version: version, Resource: &anypb.Any{TypeUrl: typeURL, Value: raw}}
}

func workloadResource(version string, w *workloadapi.Workload) *discoveryv3.Resource {
	return resource(AddressType, w.GetUid(), version, &workloadapi.Address{Type: &workloadapi.Address_Workload{Workload: w}})
}

func serviceResource(version string, s *workloadapi.Service) *discoveryv3.Resource {
	name := s.GetNamespace() + "/" + s.GetHostname()
	return resource(AddressType, name, version, &workloadapi.Address{Type: &workloadapi.Address_Service{Service: s}})
}

func policyResource(version string, p *securityapi.Authorization) *discoveryv3.Resource {
	return resource(AuthorizationType, p.GetNamespace()+"/"+p.GetName(), version, p)
}

// counters records what the client counted.
type counters struct {
	mu           sync.Mutex
	messages     map[string]int
	bytes        map[string]int
	terminations []string
}

func (c *counters) XDSMessage(typeURL string, bytes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.messages == nil {
		c.messages, c.bytes = map[string]int{}, map[string]int{}
	}
	c.messages[typeURL]++
	c.bytes[typeURL] += bytes
}

func (c *counters) XDSTermination(reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.terminations = append(c.terminations, reason)
}

func (c *counters) ended() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string{}, c.terminations...)
}
