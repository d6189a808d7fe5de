// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/sluice-mesh/sluice/internal/securityapi"
	"github.com/sluice-mesh/sluice/internal/testutil"
	"github.com/sluice-mesh/sluice/internal/workloadapi"
)

// client is one delta xDS stream and what it came to hold.
type client struct {
	t      *testing.T
	stream discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	held   map[string]map[string]string // type, name, version
	values map[string][]byte            // by name
}

func (p *plane) dial() *client {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), waitFor)
	p.t.Cleanup(cancel)
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(p.conn).DeltaAggregatedResources(ctx)
	if err != nil {
		p.t.Fatal(err)
	}
	return &client{t: p.t, stream: stream, held: map[string]map[string]string{typeAddress: {}, typeAuthorization: {}}, values: map[string][]byte{}}
}

func (c *client) send(r *discovery.DeltaDiscoveryRequest) {
	c.t.Helper()
	if err := c.stream.Send(r); err != nil {
		c.t.Fatal(err)
	}
}

// subscribe asks for everything of a type, naming what the client holds.
func (c *client) subscribe(typeURL string) {
	c.t.Helper()
	c.send(&discovery.DeltaDiscoveryRequest{
		Node: &core.Node{Id: "ztunnel~1.1.1.1~ztunnel.sluice~sluice.svc.cluster.local"}, TypeUrl: typeURL, InitialResourceVersions: c.held[typeURL],
	})
}

// receive takes the next response, applies it and leaves it to the caller to ACK.
func (c *client) receive() *discovery.DeltaDiscoveryResponse {
	c.t.Helper()
	r, err := c.stream.Recv()
	if err != nil {
		c.t.Fatal(err)
	}
	for _, res := range r.Resources {
		if res.Resource.TypeUrl != r.TypeUrl {
			c.t.Errorf("resource %q is a %s in a response of %s", res.Name, res.Resource.TypeUrl, r.TypeUrl)
		}
		c.held[r.TypeUrl][res.Name] = res.Version
		c.values[res.Name] = res.Resource.Value
	}
	for _, name := range r.RemovedResources {
		delete(c.held[r.TypeUrl], name)
	}
	return r
}

func (c *client) ack(r *discovery.DeltaDiscoveryResponse) {
	c.t.Helper()
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce})
}

func names(resources []*discovery.Resource) []string {
	var out []string
	for _, r := range resources {
		out = append(out, r.Name)
	}
	return out
}

// wantNext checks the next response and ACKs it.
func (c *client) wantNext(typeURL string, changed, removed []string) {
	c.t.Helper()
	r := c.receive()
	if r.TypeUrl != typeURL {
		c.t.Fatalf("got a response of %s, want %s", r.TypeUrl, typeURL)
	}
	if diff := cmp.Diff(changed, names(r.Resources)); diff != "" {
		c.t.Errorf("changed (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(removed, r.RemovedResources); diff != "" {
		c.t.Errorf("removed (-want +got):\n%s", diff)
	}
	c.ack(r)
}

const (
	podUID     = "Kubernetes//Pod/demo/a"
	serviceKey = "demo/web.demo.svc.cluster.local"
	strictKey  = "istio-system/" + staticStrictName
	webService = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: demo}\nspec: {clusterIP: 10.96.0.1, selector: {app: stale}, ports: [{port: 80}]}\n"
)

func TestXDSFirstAnswerAndPushes(t *testing.T) {
	p := newPlane(t, map[string]string{"web.yaml": webService})
	if err := WriteWorkload(p.workloads, runningPod("a", "node1", "10.0.0.1")); err != nil {
		t.Fatal(err)
	}
	p.Reload()
	c := p.dial()
	c.subscribe(typeAddress)
	c.wantNext(typeAddress, []string{serviceKey, podUID}, nil)
	c.subscribe(typeAuthorization)
	c.wantNext(typeAuthorization, nil, nil) // nothing to say, but said: the client is waiting for it

	var a workloadapi.Address
	if err := proto.Unmarshal(c.values[podUID], &a); err != nil {
		t.Fatal(err)
	}
	if w := a.GetWorkload(); w.GetTunnelProtocol() != workloadapi.TunnelProtocol_HBONE || w.GetNode() != "node1" || w.GetServices()[serviceKey] == nil {
		t.Errorf("got %v, want an HBONE workload on node1 that is an endpoint of %s", w, serviceKey)
	}

	// The policy comes before the workload that names it.
	p.write("strict.yaml", strictMesh)
	c.wantNext(typeAuthorization, []string{strictKey}, nil)
	c.wantNext(typeAddress, []string{podUID}, nil)
	var policy securityapi.Authorization
	if err := proto.Unmarshal(c.values[strictKey], &policy); err != nil || policy.GetAction() != securityapi.Action_DENY {
		t.Errorf("got %v, %v, want a DENY policy", &policy, err)
	}
	// It goes after the workload has dropped its name.
	p.remove("strict.yaml")
	c.wantNext(typeAddress, []string{podUID}, nil)
	c.wantNext(typeAuthorization, nil, []string{strictKey})
	p.remove("web.yaml")
	c.wantNext(typeAddress, []string{podUID}, []string{serviceKey})
	if err := RemoveWorkload(p.workloads, "node1", "demo", "a"); err != nil {
		t.Fatal(err)
	}
	c.wantNext(typeAddress, nil, []string{podUID})
}

func TestXDSReconnectSendsOnlyWhatDiffers(t *testing.T) {
	p := newPlane(t, map[string]string{"web.yaml": webService, "strict.yaml": strictMesh})
	if err := WriteWorkload(p.workloads, runningPod("a", "node1", "10.0.0.1")); err != nil {
		t.Fatal(err)
	}
	p.Reload()
	c := p.dial()
	for _, typeURL := range served {
		c.subscribe(typeURL)
		c.ack(c.receive())
	}
	for len(c.held[typeAddress]) < 2 { // the service came at once; the pod may be on its way yet
		c.ack(c.receive())
	}
	versions := maps.Clone(c.held[typeAddress])

	// Restarted with the same files: nothing is sent, but an answer is.
	p.stop()
	p.start()
	again := p.dial()
	again.held = c.held
	again.subscribe(typeAddress)
	again.wantNext(typeAddress, nil, nil)
	again.subscribe(typeAuthorization)
	again.wantNext(typeAuthorization, nil, nil)
	if diff := cmp.Diff(versions, again.held[typeAddress]); diff != "" {
		t.Errorf("versions after a restart (-before +after):\n%s", diff)
	}

	// Changed while it was down: what is gone is removed, what is new is sent.
	p.stop()
	p.remove("web.yaml")
	p.remove("strict.yaml")
	if err := WriteWorkload(p.workloads, runningPod("b", "node1", "10.0.0.2")); err != nil {
		t.Fatal(err)
	}
	p.start()
	third := p.dial()
	third.held = again.held
	third.held[typeAddress]["Kubernetes//Pod/demo/long-gone"] = "x"
	third.subscribe(typeAuthorization)
	third.wantNext(typeAuthorization, nil, nil) // the workloads of the client still name the policy
	third.subscribe(typeAddress)
	third.wantNext(typeAddress, []string{podUID, "Kubernetes//Pod/demo/b"}, []string{"Kubernetes//Pod/demo/long-gone", serviceKey})
	third.wantNext(typeAuthorization, nil, []string{strictKey})
	if got := slices.Sorted(maps.Keys(third.held[typeAddress])); len(got) != 2 {
		t.Errorf("holds %v, want both pods", got)
	}
}

func TestXDSNackIsLoggedWithItsReason(t *testing.T) {
	p := newPlane(t, map[string]string{"web.yaml": webService})
	c := p.dial()
	c.subscribe(typeAddress)
	r := c.receive()
	c.send(&discovery.DeltaDiscoveryRequest{
		TypeUrl: typeAddress, ResponseNonce: r.Nonce, ErrorDetail: &rpcstatus.Status{Message: "demo/web: VIP without address"},
	})
	testutil.Eventually(t, waitFor, func() error {
		if p.logs.count("demo/web: VIP without address") == 0 {
			return fmt.Errorf("the reason is not in the log")
		}
		return nil
	})
	// What was refused is not sent again until it changes; then it is.
	p.write("web.yaml", strings.Replace(webService, "10.96.0.1", "10.96.0.2", 1))
	c.wantNext(typeAddress, []string{serviceKey}, nil)
}

func TestXDSRefusesWhatItDoesNotServe(t *testing.T) {
	p := newPlane(t, nil)
	for name, c := range map[string]struct {
		request *discovery.DeltaDiscoveryRequest
		code    codes.Code
	}{
		"type":      {&discovery.DeltaDiscoveryRequest{TypeUrl: "type.googleapis.com/envoy.config.cluster.v3.Cluster"}, codes.InvalidArgument},
		"by name":   {&discovery.DeltaDiscoveryRequest{TypeUrl: typeAddress, ResourceNamesSubscribe: []string{"/10.0.0.1"}}, codes.Unimplemented},
		"on demand": {&discovery.DeltaDiscoveryRequest{TypeUrl: typeAddress, ResourceNamesSubscribe: []string{"*"}, ResourceNamesUnsubscribe: []string{"*"}}, codes.Unimplemented},
	} {
		t.Run(name, func(t *testing.T) {
			client := p.dial()
			client.send(c.request)
			if _, err := client.stream.Recv(); status.Code(err) != c.code {
				t.Errorf("got %v, want %v", err, c.code)
			}
		})
	}
}

func TestXDSBrokenManifestChangesNothing(t *testing.T) {
	p := newPlane(t, map[string]string{"strict.yaml": strictMesh})
	c := p.dial()
	c.subscribe(typeAuthorization)
	c.wantNext(typeAuthorization, []string{strictKey}, nil)
	p.write("strict.yaml", strictMesh+"  mtls: {}\n")
	p.wantErrors("strict.yaml:5: yaml: ")
	// The next thing the client hears of is the next change, not a removal.
	p.write("policy.yaml", "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x, namespace: demo}\nspec: {}\n")
	c.wantNext(typeAuthorization, []string{"demo/x"}, nil)
}

func TestXDSManyClientsSeeTheSame(t *testing.T) {
	p := newPlane(t, nil)
	clients := []*client{p.dial(), p.dial(), p.dial()}
	for _, c := range clients {
		c.subscribe(typeAddress)
		c.wantNext(typeAddress, nil, nil)
	}
	const pods = 200
	for i := range pods {
		text := fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: p%d, namespace: demo}\nstatus: {podIPs: [{ip: 10.0.0.%d}]}\n", i, i)
		if err := os.WriteFile(filepath.Join(p.workloads, fmt.Sprintf("p%d.yaml", i)), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range clients {
		for len(c.held[typeAddress]) < pods {
			c.ack(c.receive())
		}
		if diff := cmp.Diff(clients[0].held, c.held); diff != "" {
			t.Errorf("clients differ (-first +other):\n%s", diff)
		}
	}
}

// More than gRPC's default of 4 MiB: what a client of a big mesh names when it comes back.
func TestXDSClientThatHoldsManyComesBack(t *testing.T) {
	p := newPlane(t, nil)
	c := p.dial()
	for i := range 50_000 {
		uid := fmt.Sprintf("Kubernetes//Pod/a-namespace-of-some-length/a-deployment-%05d-5d4f8c7b9-x2x%05d", i/10, i)
		c.held[typeAddress][uid] = "0123456789abcdef01234567"
	}
	c.subscribe(typeAddress)
	r := c.receive()
	if len(r.RemovedResources) != 50_000 || len(c.held[typeAddress]) != 0 {
		t.Errorf("%d removed, %d left, want all of 50000 removed", len(r.RemovedResources), len(c.held[typeAddress]))
	}
}
