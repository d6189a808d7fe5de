// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/sluice-mesh/sluice/ztunnel/discovery"
)

// fakeClient is the pod "client" of namespace shop, on network "n1".
var fakeClient = &discovery.Workload{
	UID: "Kubernetes//Pod/shop/client", Namespace: "shop", Network: "n1", CanonicalName: "client", CanonicalRevision: "v1",
}

func vips(list ...string) (vips []discovery.NetworkAddr) {
	for _, a := range list {
		vips = append(vips, discovery.NetworkAddr{Network: "n1", Addr: netip.MustParseAddr(a)})
	}
	return vips
}

func testResolver() *Resolver {
	store := discovery.NewStore()
	const headless = "db.shop.svc.cluster.local"
	endpoint := func(uid, network string, addrs ...string) *discovery.Workload {
		w := &discovery.Workload{UID: uid, Namespace: "shop", Network: network, Healthy: true,
			Services: map[discovery.ServiceKey]map[uint16]uint16{{Namespace: "shop", Hostname: headless}: nil}}
		for _, a := range addrs {
			w.Addresses = append(w.Addresses, netip.MustParseAddr(a))
		}
		return w
	}
	sick := endpoint("e4", "n1", "10.0.0.4")
	sick.Healthy = false
	store.Apply(discovery.Update{Services: []*discovery.Service{
		{Namespace: "shop", Hostname: "web.shop.svc.cluster.local", VIPs: vips("10.1.0.1", "2001:db8::1")},
		{Namespace: "bank", Hostname: "web.bank.svc.cluster.local", VIPs: vips("10.1.0.2")},
		{Namespace: "bank", Hostname: "vault.bank.svc.cluster.local", VIPs: vips("10.1.0.9"), Private: true},
		{Namespace: "shop", Hostname: headless},
		{Namespace: "shop", Hostname: "api.example.com", VIPs: vips("240.240.0.1")},
		{Namespace: "shop", Hostname: "*.example.com", VIPs: vips("240.240.0.2")},
		{Namespace: "shop", Hostname: "*.deep.example.com", VIPs: vips("240.240.0.3")},
		{Namespace: "shop", Hostname: "none.example.org"},
		{Namespace: "shop", Hostname: "far.example.org", VIPs: []discovery.NetworkAddr{{Network: "n2", Addr: netip.MustParseAddr("10.9.0.1")}}},
		{Namespace: "a", Hostname: "dup.example.org", VIPs: vips("10.2.0.1")},
		{Namespace: "b", Hostname: "dup.example.org", VIPs: vips("10.2.0.2")},
		{Namespace: "a", Hostname: "canon.example.org", VIPs: vips("10.2.0.1")},
		{Namespace: "b", Hostname: "canon.example.org", VIPs: vips("10.2.0.2")},
		{Namespace: "c", Hostname: "canon.example.org", VIPs: vips("10.2.0.3"), Canonical: true},
		{Namespace: "a", Hostname: "own.example.org", VIPs: vips("10.2.0.1"), Canonical: true},
		{Namespace: "shop", Hostname: "own.example.org", VIPs: vips("10.2.0.4")},
	}, Workloads: []*discovery.Workload{
		endpoint("e1", "n1", "10.0.0.1", "2001:db8::11"), endpoint("e2", "n1", "10.0.0.2"), endpoint("e3", "n2", "10.0.0.3"), sick,
	}})
	return &Resolver{Store: store, Domain: "cluster.local", PreferredNamespace: "b"}
}

func TestNamesOfTheMesh(t *testing.T) {
	r := testResolver()
	for _, tc := range []struct {
		name, canonical string
		want            []string // nil: not of the mesh
	}{
		{"web.shop.svc.cluster.local", "", []string{"10.1.0.1", "2001:db8::1"}},
		{"web", "", []string{"10.1.0.1", "2001:db8::1"}},
		{"web.shop", "", []string{"10.1.0.1", "2001:db8::1"}},
		{"web.bank", "", []string{"10.1.0.2"}},
		{"web.bank.svc", "", []string{"10.1.0.2"}},
		{"web.bank.shop.svc.cluster.local", "web.bank.svc.cluster.local", []string{"10.1.0.2"}},
		{"api.example.com.shop.svc.cluster.local", "api.example.com", []string{"240.240.0.1"}},
		{"api.example.com.svc.cluster.local", "api.example.com", []string{"240.240.0.1"}},
		{"api.example.com.cluster.local", "api.example.com", []string{"240.240.0.1"}},
		{"api.example.com.bank.svc.cluster.local", "", nil}, // not the client's search list
		{"vault.bank", "", nil},
		{"db", "", []string{"10.0.0.1", "10.0.0.2", "2001:db8::11"}},
		{"api.example.com", "", []string{"240.240.0.1"}},
		{"other.example.com", "", []string{"240.240.0.2"}},
		{"a.b.example.com", "", []string{"240.240.0.2"}},
		{"x.deep.example.com", "", []string{"240.240.0.3"}},
		{"deep.example.com", "", []string{"240.240.0.2"}},
		{"example.com", "", nil},
		{"other.example.com.shop.svc.cluster.local", "other.example.com", []string{"240.240.0.2"}},
		{"none.example.org", "", nil},
		{"far.example.org", "", []string{}},
		{"dup.example.org", "", []string{"10.2.0.2"}},
		{"canon.example.org", "", []string{"10.2.0.3"}},
		{"own.example.org", "", []string{"10.2.0.4"}},
		{"nothing", "", nil}, {"com", "", nil}, {".", "", nil}, {"..", "", nil}, {"", "", nil},
	} {
		a, ok := r.lookup(fakeClient, tc.name)
		if ok != (tc.want != nil) || a.canonical != tc.canonical {
			t.Errorf("%q: known %t, canonical %q, want %t, %q", tc.name, ok, a.canonical, tc.want != nil, tc.canonical)
		}
		var got []string
		for _, addr := range a.addresses {
			got = append(got, addr.String())
		}
		slices.Sort(got)
		if !slices.Equal(got, tc.want) {
			t.Errorf("%q: got %v, want %v", tc.name, got, tc.want)
		}
	}
}
