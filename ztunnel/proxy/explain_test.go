// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/sluice-mesh/sluice/ztunnel/discovery"
	"github.com/sluice-mesh/sluice/ztunnel/inpod"
)

// explainer knows a client, a server in the mesh that a policy guards, a stranger, and a service of each.
func explainer() *Proxy {
	store := discovery.NewStore()
	key := discovery.ServiceKey{Namespace: "default", Hostname: "web.default.svc.cluster.local"}
	server := pod("server", "10.0.0.2")
	server.Services = map[discovery.ServiceKey]map[uint16]uint16{key: {80: 8080}}
	stranger := pod("stranger", "10.0.0.3", plainTCP)
	store.Apply(discovery.Update{
		Workloads: []*discovery.Workload{pod("client", "10.0.0.1"), server, stranger},
		Services: []*discovery.Service{{
			Namespace: "default", Name: "web", Hostname: key.Hostname, Ports: map[uint16]uint16{80: 8080},
			VIPs: []discovery.NetworkAddr{{Addr: netip.MustParseAddr("10.96.0.1")}},
		}},
		Policies: []*discovery.Policy{{
			Namespace: "default", Name: "no-8081", Scope: discovery.PolicyNamespace, Action: discovery.Deny,
			Groups: []discovery.Group{{Clauses: []discovery.Clause{{Matches: []discovery.Match{{DestinationPorts: []uint16{8081}}}}}}},
		}},
	})
	p := &Proxy{Config: Config{Store: store, ClusterID: "Kubernetes"}}
	p.router.store = store
	return p
}

func TestExplain(t *testing.T) {
	p := explainer()
	client := inpod.Info{UID: "u1", Namespace: "default", Name: "client", ServiceAccount: "client"}
	for name, tc := range map[string]struct {
		dst  string
		want Explained
	}{
		"a pod of the mesh":       {"10.0.0.2:8080", Explained{Verdict: VerdictMTLS, Known: true, Allowed: true, Workload: "default/server", Protocol: "HBONE"}},
		"a port a policy refuses": {"10.0.0.2:8081", Explained{Verdict: VerdictMTLS, Known: true, Workload: "default/server", Protocol: "HBONE", Policy: "default/no-8081"}},
		"a pod outside the mesh":  {"10.0.0.3:80", Explained{Verdict: VerdictPlaintext, Known: true, Allowed: true, Workload: "default/stranger", Protocol: "TCP"}},
		"a stranger":              {"192.0.2.9:80", Explained{Verdict: VerdictPassthrough, Allowed: true}},
		"a service by address":    {"10.96.0.1:80", Explained{Verdict: VerdictMTLS, Known: true, Allowed: true, Workload: "default/server", Protocol: "HBONE"}},
		"a service by name":       {"web:80", Explained{Verdict: VerdictMTLS, Known: true, Allowed: true, Workload: "default/server", Protocol: "HBONE"}},
		"a port no service has":   {"web.default:81", Explained{Verdict: VerdictNoEndpoint, Known: true}},
		"ztunnel's own address":   {"203.0.113.1:1", Explained{Verdict: VerdictHiddenAddress}},
	} {
		t.Run(name, func(t *testing.T) {
			e, err := p.Explain(client, tc.dst)
			if err != nil || len(e.Routes) != 1 {
				t.Fatalf("got %+v, %v, want one route", e, err)
			}
			g := e.Routes[0]
			got := Explained{Verdict: g.Verdict, Known: g.Known, Allowed: g.Allowed, Workload: g.Workload, Protocol: g.Protocol, Policy: g.Policy}
			if got.Verdict != tc.want.Verdict || got.Known != tc.want.Known || got.Allowed != tc.want.Allowed || got.Workload != tc.want.Workload ||
				got.Protocol != tc.want.Protocol || got.Policy != tc.want.Policy {
				t.Errorf("got %+v, want %+v", g, tc.want)
			}
		})
	}
	for dst, want := range map[string]string{"nobody:80": `no service "nobody"`, "10.0.0.1": "want ADDRESS:PORT"} {
		if _, err := p.Explain(client, dst); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", dst, err, want)
		}
	}
	unknown := inpod.Info{Namespace: "default", Name: "nobody"}
	if e, err := p.Explain(unknown, "10.0.0.2:80"); err != nil || e.Problem == "" {
		t.Errorf("unknown pod: got %+v, %v, want a problem", e, err)
	}
}
