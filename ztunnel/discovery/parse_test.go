// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sluice-mesh/sluice/internal/securityapi"
	"github.com/sluice-mesh/sluice/internal/workloadapi"
)

func TestParseWorkload(t *testing.T) {
	got, err := parseWorkload(&workloadapi.Workload{
		Uid: "c1//Pod/shop/a", Name: "a", Namespace: "shop", Hostname: "a.example", Network: "net1",
		Addresses:      [][]byte{{10, 0, 0, 1}, netip.MustParseAddr("fd00:1::1").AsSlice(), netip.MustParseAddr("::ffff:10.0.0.2").AsSlice()},
		TunnelProtocol: workloadapi.TunnelProtocol_HBONE, TrustDomain: "td", ServiceAccount: "cart",
		Waypoint: &workloadapi.GatewayAddress{Destination: &workloadapi.GatewayAddress_Hostname{
			Hostname: &workloadapi.NamespacedHostname{Namespace: "infra", Hostname: "wp.example"}}},
		NetworkGateway: &workloadapi.GatewayAddress{HboneMtlsPort: 15009, Destination: &workloadapi.GatewayAddress_Address{
			Address: &workloadapi.NetworkAddress{Network: "net2", Address: []byte{192, 168, 0, 1}}}},
		Node: "n1", CanonicalName: "cart", CanonicalRevision: "v1", WorkloadType: workloadapi.WorkloadType_JOB, WorkloadName: "cart-job",
		NativeTunnel: true, AuthorizationPolicies: []string{"shop/z", "shop/a", "shop/z"}, Status: workloadapi.WorkloadStatus_UNHEALTHY,
		ClusterId: "c1", Services: map[string]*workloadapi.PortList{"shop/web": {Ports: []*workloadapi.Port{{ServicePort: 80, TargetPort: 8080}}}},
		ApplicationTunnel: &workloadapi.ApplicationTunnel{Protocol: workloadapi.ApplicationTunnel_PROXY, Port: 15088},
		Locality:          &workloadapi.Locality{Region: "r", Zone: "z", Subzone: "s"},
		NetworkMode:       workloadapi.NetworkMode_HOST_NETWORK, Capacity: wrapperspb.UInt32(0),
	})
	want := &Workload{
		UID: "c1//Pod/shop/a", Name: "a", Namespace: "shop", Hostname: "a.example", Network: "net1",
		Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00:1::1"), netip.MustParseAddr("10.0.0.2")},
		Protocol:  ProtocolHBONE, TrustDomain: "td", ServiceAccount: "cart",
		Waypoint:       &Gateway{Hostname: ServiceKey{"infra", "wp.example"}, Port: 15008},
		NetworkGateway: &Gateway{Address: NetworkAddr{"net2", netip.MustParseAddr("192.168.0.1")}, Port: 15009},
		Node:           "n1", CanonicalName: "cart", CanonicalRevision: "v1", WorkloadType: 3, WorkloadName: "cart-job",
		NativeTunnel: true, Policies: []string{"shop/a", "shop/z"}, ClusterID: "c1",
		Services:  map[ServiceKey]map[uint16]uint16{{"shop", "web"}: {80: 8080}},
		AppTunnel: &Tunnel{Proxy: true, Port: 15088}, Locality: Locality{"r", "z", "s"}, HostNetwork: true, Capacity: 0,
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, want)
	}
	got, err = parseWorkload(&workloadapi.Workload{Uid: "x", Status: 9, NetworkMode: 9, WorkloadType: 9})
	want = &Workload{UID: "x", TrustDomain: "cluster.local", ServiceAccount: "default", ClusterID: "Kubernetes", WorkloadType: 9, Capacity: 1}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("of an almost empty one got %+v, %v\nwant %+v", got, err, want)
	}
}

func TestParseService(t *testing.T) {
	address := func(network string, length *uint32, b ...byte) *workloadapi.NetworkAddress {
		return &workloadapi.NetworkAddress{Network: network, Address: b, Length: length}
	}
	got, err := parseService(&workloadapi.Service{
		Name: "web", Namespace: "shop", Hostname: "web.example",
		Addresses: []*workloadapi.NetworkAddress{
			address("", nil, 10, 1, 0, 1), address("net1", proto.Uint32(32), 10, 1, 0, 2), address("", proto.Uint32(16), 10, 2, 3, 4),
		},
		Ports:           []*workloadapi.Port{{ServicePort: 80, TargetPort: 8080}, {ServicePort: 443}},
		SubjectAltNames: []string{"spiffe://td/ns/a/sa/b"},
		LoadBalancing: &workloadapi.LoadBalancing{
			Mode: workloadapi.LoadBalancing_FAILOVER, RoutingPreference: []workloadapi.LoadBalancing_Scope{6, 1, 99},
			HealthPolicy: workloadapi.LoadBalancing_ALLOW_ALL,
		},
		IpFamilies: workloadapi.IPFamilies_DUAL, Canonical: true, Visibility: workloadapi.Visibility_NAMESPACE,
		WeightedWaypoints: []*workloadapi.WeightedWaypoint{{Weight: 3, Destination: &workloadapi.GatewayAddress{
			Destination: &workloadapi.GatewayAddress_Hostname{Hostname: &workloadapi.NamespacedHostname{Namespace: "n", Hostname: "h"}}}}},
	})
	want := &Service{
		Name: "web", Namespace: "shop", Hostname: "web.example",
		VIPs:            []NetworkAddr{{"", netip.MustParseAddr("10.1.0.1")}, {"net1", netip.MustParseAddr("10.1.0.2")}},
		CIDRVIPs:        []NetworkPrefix{{"", netip.MustParsePrefix("10.2.0.0/16")}},
		Ports:           map[uint16]uint16{80: 8080, 443: 0},
		SubjectAltNames: []string{"spiffe://td/ns/a/sa/b"},
		LoadBalancing:   LoadBalancing{RoutingPreference: []Scope{ScopeNetwork, ScopeRegion, 99}, Mode: ModeFailover, AllowUnhealthy: true},
		IPFamilies:      FamiliesDual, Canonical: true, Private: true,
		WeightedWaypoints: []WeightedGateway{{Gateway{Hostname: ServiceKey{"n", "h"}, Port: 15008}, 3}},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, want)
	}
	if got, err := parseService(&workloadapi.Service{Namespace: "a", Hostname: "b", Visibility: 9}); err != nil || got.Private {
		t.Errorf("unknown visibility: %+v, %v, want public", got, err)
	}
}

func TestAddressesThatAreRefused(t *testing.T) {
	workload := func(edit func(*workloadapi.Workload)) *workloadapi.Address {
		w := &workloadapi.Workload{Uid: "x"}
		edit(w)
		return &workloadapi.Address{Type: &workloadapi.Address_Workload{Workload: w}}
	}
	service := func(edit func(*workloadapi.Service)) *workloadapi.Address {
		s := &workloadapi.Service{Namespace: "a", Hostname: "b"}
		edit(s)
		return &workloadapi.Address{Type: &workloadapi.Address_Service{Service: s}}
	}
	portList := func(service, target uint32) []*workloadapi.Port {
		return []*workloadapi.Port{{ServicePort: service, TargetPort: target}}
	}
	for want, m := range map[string]*workloadapi.Address{
		"neither workload nor service":                        {},
		"uid is empty":                                        workload(func(w *workloadapi.Workload) { w.Uid = "" }),
		"addresses[1]: address of 5 bytes, want 4 or 16":      workload(func(w *workloadapi.Workload) { w.Addresses = [][]byte{{1, 2, 3, 4}, {1, 2, 3, 4, 5}} }),
		"tunnel_protocol: LEGACY_ISTIO_MTLS is not supported": workload(func(w *workloadapi.Workload) { w.TunnelProtocol = 2 }),
		"tunnel_protocol: 99 is not supported":                workload(func(w *workloadapi.Workload) { w.TunnelProtocol = 99 }),
		`services: key "web": want namespace/hostname`: workload(func(w *workloadapi.Workload) {
			w.Services = map[string]*workloadapi.PortList{"web": nil}
		}),
		`services: key "a/b/c": want namespace/hostname`: workload(func(w *workloadapi.Workload) {
			w.Services = map[string]*workloadapi.PortList{"a/b/c": nil}
		}),
		`services["a/b"]: ports[0]: target_port: port 70000 is above 65535`: workload(func(w *workloadapi.Workload) {
			w.Services = map[string]*workloadapi.PortList{"a/b": {Ports: portList(80, 70000)}}
		}),
		"waypoint: neither hostname nor address": workload(func(w *workloadapi.Workload) { w.Waypoint = &workloadapi.GatewayAddress{} }),
		"network_gateway: address of 0 bytes, want 4 or 16": workload(func(w *workloadapi.Workload) {
			w.NetworkGateway = &workloadapi.GatewayAddress{Destination: &workloadapi.GatewayAddress_Address{}}
		}),
		"waypoint: hostname is empty": workload(func(w *workloadapi.Workload) {
			w.Waypoint = &workloadapi.GatewayAddress{Destination: &workloadapi.GatewayAddress_Hostname{}}
		}),
		"waypoint: port 65536 is above 65535": workload(func(w *workloadapi.Workload) { w.Waypoint = &workloadapi.GatewayAddress{HboneMtlsPort: 65536} }),
		"application_tunnel: protocol 7 is not supported": workload(func(w *workloadapi.Workload) {
			w.ApplicationTunnel = &workloadapi.ApplicationTunnel{Protocol: 7}
		}),
		"namespace or hostname is empty":                    service(func(s *workloadapi.Service) { s.Hostname = "" }),
		"ports[0]: service_port: port 65536 is above 65535": service(func(s *workloadapi.Service) { s.Ports = portList(65536, 1) }),
		"addresses[0]: address of 0 bytes, want 4 or 16":    service(func(s *workloadapi.Service) { s.Addresses = []*workloadapi.NetworkAddress{{Network: "x"}} }),
		"addresses[0]: prefix 10.0.0.0/33 is longer than 32 bits": service(func(s *workloadapi.Service) {
			s.Addresses = []*workloadapi.NetworkAddress{{Address: []byte{10, 0, 0, 0}, Length: proto.Uint32(33)}}
		}),
		`slash in namespace "a" or hostname "b/c"`: service(func(s *workloadapi.Service) { s.Hostname = "b/c" }),
		"addresses[0]: prefix ::ffff:10.0.0.0/90 is neither IPv4 nor IPv6": service(func(s *workloadapi.Service) {
			s.Addresses = []*workloadapi.NetworkAddress{{Address: netip.MustParseAddr("::ffff:10.0.0.0").AsSlice(), Length: proto.Uint32(90)}}
		}),
		"weighted_waypoints[0]: neither hostname nor address": service(func(s *workloadapi.Service) {
			s.WeightedWaypoints = []*workloadapi.WeightedWaypoint{{Weight: 1}}
		}),
	} {
		raw, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		var u Update
		if _, err := u.addAddress(raw); err == nil || err.Error() != want {
			t.Errorf("got %v, want %q", err, want)
		}
		if len(u.Workloads)+len(u.Services) != 0 {
			t.Errorf("%s: applied all the same", want)
		}
	}
}

func TestParsePolicy(t *testing.T) {
	got, err := parsePolicy(&securityapi.Authorization{
		Name: "p", Namespace: "shop", Scope: securityapi.Scope_WORKLOAD_SELECTOR, Action: securityapi.Action_DENY, DryRun: true,
		Groups: []*securityapi.Group{{Rules: []*securityapi.Rules{{Matches: []*securityapi.Match{{
			Namespaces:    []*securityapi.StringMatch{{MatchType: &securityapi.StringMatch_Exact{Exact: "a"}}},
			NotNamespaces: []*securityapi.StringMatch{{MatchType: &securityapi.StringMatch_Prefix{Prefix: "b"}}},
			Principals:    []*securityapi.StringMatch{{MatchType: &securityapi.StringMatch_Suffix{Suffix: "c"}}},
			NotPrincipals: []*securityapi.StringMatch{{MatchType: &securityapi.StringMatch_Presence{Presence: &emptypb.Empty{}}}},
			SourceIps:     []*securityapi.Address{ip(8, 10, 1, 2, 3)}, NotSourceIps: []*securityapi.Address{ip(0, 0, 0, 0, 0)},
			DestinationIps:    []*securityapi.Address{ip(128, netip.MustParseAddr("fd00::1").AsSlice()...)},
			NotDestinationIps: []*securityapi.Address{ip(112, netip.MustParseAddr("::ffff:10.0.0.0").AsSlice()...)},
			DestinationPorts:  []uint32{80}, NotDestinationPorts: []uint32{65536 + 443},
			ServiceAccounts:    []*securityapi.ServiceAccountMatch{{Namespace: "n", ServiceAccount: "s"}},
			NotServiceAccounts: []*securityapi.ServiceAccountMatch{{Namespace: "m", ServiceAccount: "r"}},
		}}}}}},
	})
	want := &Policy{
		Name: "p", Namespace: "shop", Scope: PolicyWorkload, Action: Deny, DryRun: true,
		Groups: []Group{{[]Clause{{[]Match{{
			Namespaces: []StringMatch{{MatchExact, "a"}}, NotNamespaces: []StringMatch{{MatchPrefix, "b"}},
			Principals: []StringMatch{{MatchSuffix, "c"}}, NotPrincipals: []StringMatch{{Kind: MatchPresence}},
			SourceIPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, NotSourceIPs: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")},
			DestinationIPs: []netip.Prefix{netip.MustParsePrefix("fd00::1/128")}, NotDestinationIPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")},
			DestinationPorts: []uint16{80}, NotDestinationPorts: []uint16{443},
			ServiceAccounts: []ServiceAccount{{"n", "s"}}, NotServiceAccounts: []ServiceAccount{{"m", "r"}},
		}}}}}},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, want)
	}
}

func TestPoliciesThatAreRefused(t *testing.T) {
	with := func(m *securityapi.Match) *securityapi.Authorization {
		return &securityapi.Authorization{Name: "p", Groups: []*securityapi.Group{{}, {Rules: []*securityapi.Rules{{Matches: []*securityapi.Match{{}, m}}}}}}
	}
	for want, m := range map[string]*securityapi.Authorization{
		"name is empty":             {Namespace: "x"},
		"scope 7 is not supported":  {Name: "p", Scope: 7},
		"action 7 is not supported": {Name: "p", Action: 7},
		"groups[1]: rules[0].matches[1]: not_source_ips[1]: address of 2 bytes, want 4 or 16":              with(&securityapi.Match{NotSourceIps: []*securityapi.Address{ip(8, 10, 0, 0, 0), ip(8, 10, 0)}}),
		"groups[1]: rules[0].matches[1]: destination_ips[0]: prefix fd00::/129 is longer than 128 bits":    with(&securityapi.Match{DestinationIps: []*securityapi.Address{ip(129, netip.MustParseAddr("fd00::").AsSlice()...)}}),
		"groups[1]: rules[0].matches[1]: source_ips[0]: prefix 10.0.0.0/4294967295 is longer than 32 bits": with(&securityapi.Match{SourceIps: []*securityapi.Address{ip(4294967295, 10, 0, 0, 0)}}),
		"groups[1]: rules[0].matches[1]: not_principals[0]: no kind of match":                              with(&securityapi.Match{NotPrincipals: []*securityapi.StringMatch{{}}}),
	} {
		if _, err := parsePolicy(m); err == nil || err.Error() != want {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestRefusalNamesEveryBadResourceWithinBounds(t *testing.T) {
	r := response(AuthorizationType, "n")
	for range maxNamed + 5 {
		r.Resources = append(r.Resources, policyResource("1", &securityapi.Authorization{Name: "p", Action: 9}))
	}
	_, err := parseResponse(r)
	if err == nil || strings.Count(err.Error(), "action 9") != maxNamed || !strings.HasSuffix(err.Error(), "; and 5 more") {
		t.Errorf("got %v", err)
	}
}

// FuzzAddress: foreign bytes are refused or give a record that a store takes, shows and gives up again without a trace.
func FuzzAddress(f *testing.F) {
	for _, m := range []*workloadapi.Address{
		{Type: &workloadapi.Address_Workload{Workload: podMessage("a", "10.0.0.1")}},
		{Type: &workloadapi.Address_Workload{Workload: podMessage("b", "fd00::1")}},
		{Type: &workloadapi.Address_Service{Service: webMessage()}},
		{Type: &workloadapi.Address_Service{Service: &workloadapi.Service{Namespace: "a", Hostname: "b", Addresses: []*workloadapi.NetworkAddress{{Address: []byte{10, 0, 0, 0}, Length: proto.Uint32(8)}}}}},
		{},
	} {
		raw, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var u Update
		if _, err := u.addAddress(raw); err != nil {
			if err.Error() == "" || len(u.Workloads)+len(u.Services) != 0 {
				t.Errorf("refused with %q, but %+v", err, u)
			}
			return
		}
		var again Update
		name, err := again.addAddress(raw)
		if err != nil || !reflect.DeepEqual(u, again) {
			t.Errorf("the same bytes gave %+v, then %+v, %v", u, again, err)
		}
		s := NewStore()
		s.Apply(u)
		if _, err := json.Marshal(s.Dump()); err != nil {
			t.Errorf("dump: %v", err)
		}
		for _, w := range u.Workloads {
			if !w.HostNetwork {
				for _, a := range w.Addresses {
					if s.WorkloadByAddr(w.Network, a) != w {
						t.Errorf("%s is not found at %s", w.UID, a)
					}
				}
			}
		}
		for _, svc := range u.Services {
			for _, vip := range svc.VIPs {
				if s.ServiceByVIP(vip.Network, vip.Addr, svc.Namespace) != svc {
					t.Errorf("%s is not found at %s", svc.Key(), vip)
				}
			}
			for _, r := range svc.CIDRVIPs {
				if s.ServiceByVIP(r.Network, r.Prefix.Addr(), svc.Namespace) != svc {
					t.Errorf("%s is not found in %s", svc.Key(), r)
				}
			}
		}
		s.CaptureSet("")
		s.Apply(Update{RemoveAddresses: []string{name}})
		wantNew(t, s)
	})
}

// FuzzAuthorization: foreign bytes are refused or give a policy that can be shown and given up again.
func FuzzAuthorization(f *testing.F) {
	for _, m := range []*securityapi.Authorization{
		policyMessage("p", ip(8, 10, 0, 0, 0)), policyMessage("q", ip(128, make([]byte, 16)...)), {Name: "x", DryRun: true}, {},
	} {
		raw, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var u Update
		key, err := u.addPolicy(raw)
		if err != nil {
			if len(u.Policies) != 0 {
				t.Errorf("refused with %v, but %+v", err, u)
			}
			return
		}
		s := NewStore()
		s.Apply(u)
		if _, err := json.Marshal(s.Dump()); err != nil {
			t.Errorf("dump: %v", err)
		}
		for _, p := range u.Policies {
			for _, g := range p.Groups {
				for _, c := range g.Clauses {
					for _, m := range c.Matches {
						for _, prefix := range m.SourceIPs {
							if !prefix.IsValid() || prefix != prefix.Masked() {
								t.Errorf("prefix %v", prefix)
							}
						}
					}
				}
			}
		}
		s.Apply(Update{RemovePolicies: []string{key}})
		wantNew(t, s)
	})
}
