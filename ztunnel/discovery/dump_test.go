// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"bytes"
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestDump compares with testdata/dump.want.json, whose keys istioctl reads.
func TestDump(t *testing.T) {
	s := NewStore()
	way := &Gateway{Hostname: ServiceKey{"infra", "waypoint.example"}, Port: DefaultHBONEPort}
	s.Apply(Update{
		Workloads: []*Workload{
			pod("a", "10.0.0.1", inService(web, map[uint16]uint16{80: 8080}), func(w *Workload) {
				w.Policies, w.Node, w.ClusterID, w.Locality = []string{"shop/p"}, "node1", "Kubernetes", Locality{"r", "z", "s"}
				w.AppTunnel, w.WorkloadType = &Tunnel{Proxy: true, Port: 15088}, 2
			}),
			pod("b", "", inService(ServiceKey{"shop", "unknown.example"}, nil), unhealthy, plain, func(w *Workload) {
				w.Waypoint = way
				w.HostNetwork, w.Hostname, w.NetworkGateway = true, "b.example", &Gateway{Address: NetworkAddr{"far", netip.MustParseAddr("192.168.0.1")}, Port: 15009}
			}),
		},
		Services: []*Service{service(web, "10.1.0.1", canonical, func(svc *Service) {
			svc.Waypoint, svc.WeightedWaypoints = way, []WeightedGateway{{*way, 5}}
			svc.CIDRVIPs = []NetworkPrefix{{"far", netip.MustParsePrefix("10.2.0.0/16")}}
			svc.LoadBalancing = LoadBalancing{RoutingPreference: []Scope{ScopeNetwork, ScopeZone, 42}, Mode: ModeFailover}
			svc.SubjectAltNames = []string{"spiffe://cluster.local/ns/shop/sa/web"}
		}), service(ServiceKey{"shop", "plain.example"}, "10.1.0.2", private)},
		Policies: []*Policy{{
			Namespace: "shop", Name: "p", Scope: PolicyWorkload, Action: Deny, Groups: []Group{{[]Clause{{[]Match{{
				Principals:    []StringMatch{{MatchExact, "x"}, {MatchPrefix, "y"}, {MatchSuffix, "z"}},
				NotPrincipals: []StringMatch{{Kind: MatchPresence}},
				SourceIPs:     []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, DestinationPorts: []uint16{80},
				ServiceAccounts: []ServiceAccount{{"shop", "cart"}},
			}}}, {}}}},
		}, {Namespace: "istio-system", Name: "g", DryRun: true}},
	})
	got, err := json.MarshalIndent(s.Dump(), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	const golden = "testdata/dump.want.json"
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
