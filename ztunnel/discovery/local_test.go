// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"
)

func TestLocalFileHasEverythingThatXDSHas(t *testing.T) {
	text, err := os.ReadFile("testdata/local.yaml")
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseLocal(text)
	if err != nil {
		t.Fatal(err)
	}
	webKey := ServiceKey{"default", "web.example"}
	want := Update{
		Workloads: []*Workload{{
			UID: "cluster1//v1/Pod/default/local", Name: "local", Namespace: "default", ServiceAccount: "server", TrustDomain: "cluster.local",
			Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}, Protocol: ProtocolHBONE, Node: "local",
			HostNetwork: true, Capacity: 3, NativeTunnel: true, WorkloadType: 2, Locality: Locality{"r", "z", "s"}, ClusterID: "Kubernetes",
			Waypoint:       &Gateway{Address: NetworkAddr{"", netip.MustParseAddr("10.0.0.9")}, Port: 15018},
			NetworkGateway: &Gateway{Hostname: ServiceKey{"istio-system", "gateway.example"}, Port: 15008},
			AppTunnel:      &Tunnel{Proxy: true, Port: 15088}, Policies: []string{"default/allow", "default/deny"},
			Services: map[ServiceKey]map[uint16]uint16{webKey: {80: 8080}},
		}, {
			UID: "Kubernetes//Pod/default/second", Name: "second", Namespace: "default", ServiceAccount: "default", TrustDomain: "cluster.local",
			Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.2")}, Healthy: true, Capacity: 1, ClusterID: "Kubernetes",
		}},
		Services: []*Service{{
			Name: "web", Namespace: "default", Hostname: "web.example", Ports: map[uint16]uint16{80: 8080, 443: 0},
			VIPs:            []NetworkAddr{{"", netip.MustParseAddr("10.1.0.1")}, {"remote", netip.MustParseAddr("fd00::1")}},
			CIDRVIPs:        []NetworkPrefix{{"", netip.MustParsePrefix("10.2.0.0/16")}},
			SubjectAltNames: []string{"spiffe://td/ns/default/sa/x"}, Waypoint: &Gateway{Hostname: ServiceKey{"infra", "waypoint.example"}, Port: 15008},
			LoadBalancing: LoadBalancing{Mode: ModeFailover, RoutingPreference: []Scope{ScopeNetwork, ScopeRegion}, AllowUnhealthy: true},
			IPFamilies:    FamiliesDual, Canonical: true, Private: true,
		}},
		Policies: []*Policy{{
			Name: "deny", Namespace: "default", Scope: PolicyWorkload, Action: Deny, DryRun: true,
			Groups: []Group{{[]Clause{{[]Match{{
				Namespaces: []StringMatch{{MatchExact, "a"}}, NotPrincipals: []StringMatch{{MatchPrefix, "b"}, {MatchSuffix, "c"}, {Kind: MatchPresence}},
				SourceIPs:        []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.0.2.1/32")},
				DestinationPorts: []uint16{80}, ServiceAccounts: []ServiceAccount{{"default", "x"}},
			}}}, {}}}},
		}},
	}
	if !reflect.DeepEqual(got.Policies, want.Policies) {
		t.Errorf("policies:\ngot  %+v\nwant %+v", *got.Policies[0], *want.Policies[0])
	}
	if !reflect.DeepEqual(got.Services, want.Services) {
		t.Errorf("services:\ngot  %+v\nwant %+v", *got.Services[0], *want.Services[0])
	}
	for i, w := range want.Workloads {
		if !reflect.DeepEqual(got.Workloads[i], w) {
			t.Errorf("workload %d:\ngot  %+v\nwant %+v", i, *got.Workloads[i], *w)
		}
	}
	s := NewStore()
	s.Apply(got)
	if endpoints := s.Endpoints(webKey); len(endpoints) != 1 {
		t.Errorf("got %d endpoints, want 1", len(endpoints))
	}
}

func TestLocalFileRefusesWhatItDoesNotKnow(t *testing.T) {
	const workload = "workloads: [{name: a, namespace: b, workloadIps: [], services: {}, "
	for text, want := range map[string]string{
		"pods: []":                 `unknown field "pods"`,
		workload + "colour: red}]": `unknown field "colour"`,
		"workloads: [{name: a, workloadIps: [], services: {}}]":                                        "workloads[0]: namespace, workloadIps and services",
		"workloads: [{name: a, namespace: b, services: {}}]":                                           "workloads[0]: namespace, workloadIps and services",
		"workloads: [{namespace: b, workloadIps: [], services: {}}]":                                   "neither uid nor name",
		workload + "protocol: UDP}]":                                                                   `protocol: "UDP" is not one of TCP, HBONE`,
		workload + "waypoint: {destination: x}}]":                                                      `waypoint.destination: "x"`,
		"workloads: [{name: a, namespace: b, workloadIps: [], services: {x: {}}}]":                     `key "x"`,
		"services: [{namespace: a, hostname: b, vips: [10.0.0.1]}]":                                    `"10.0.0.1" is not network/address`,
		"services: [{namespace: a}]":                                                                   "want namespace/hostname",
		"services: [{namespace: a, hostname: b, loadBalancer: {mode: Best}}]":                          `loadBalancer.mode: "Best"`,
		"policies: [{name: a}]":                                                                        "name, scope and action",
		"policies: [{name: a, scope: Global, action: Allow, rules: [[[{namespaces: [{Regex: x}]}]]]}]": "want one of Exact",
		"policies: [{name: a, scope: Global, action: Allow, rules: [[[{sourceIps: [x]}]]]}]":           "sourceIps[0]",
		"policies: [{name: a, scope: Mine, action: Allow}]":                                            `scope: "Mine"`,
	} {
		if u, err := ParseLocal([]byte(text)); err == nil || !strings.Contains(err.Error(), want) || u.Workloads != nil {
			t.Errorf("%s:\ngot %v, want %q", text, err, want)
		}
	}
}
