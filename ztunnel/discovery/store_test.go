// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"testing"
)

var web = ServiceKey{"shop", "web.shop.svc.cluster.local"}

// pod returns a healthy HBONE pod in namespace shop; edits change it.
func pod(name, addr string, edits ...func(*Workload)) *Workload {
	w := &Workload{
		UID: "Kubernetes//Pod/shop/" + name, Name: name, Namespace: "shop", TrustDomain: "cluster.local",
		ServiceAccount: name, Protocol: ProtocolHBONE, Healthy: true, Capacity: 1,
	}
	if addr != "" {
		w.Addresses = []netip.Addr{netip.MustParseAddr(addr)}
	}
	for _, edit := range edits {
		edit(w)
	}
	return w
}

func inService(key ServiceKey, ports map[uint16]uint16) func(*Workload) {
	return func(w *Workload) { w.Services = map[ServiceKey]map[uint16]uint16{key: ports} }
}

func withUID(uid string) func(*Workload) { return func(w *Workload) { w.UID = uid } }

func unhealthy(w *Workload) { w.Healthy = false }

func plain(w *Workload) { w.Protocol = ProtocolTCP }

// service returns a service with port 80 to 8080; edits change it.
func service(key ServiceKey, vip string, edits ...func(*Service)) *Service {
	s := &Service{
		Name: "web", Namespace: key.Namespace, Hostname: key.Hostname, Ports: map[uint16]uint16{80: 8080},
		VIPs: []NetworkAddr{{Addr: netip.MustParseAddr(vip)}},
	}
	for _, edit := range edits {
		edit(s)
	}
	return s
}

func canonical(s *Service) { s.Canonical = true }

func private(s *Service) { s.Private = true }

func names(endpoints []Endpoint) string {
	var list []string
	for _, e := range endpoints {
		list = append(list, e.Workload.Name)
	}
	return strings.Join(list, " ")
}

func wantEndpoints(t *testing.T, s *Store, want string) {
	t.Helper()
	if got := names(s.Endpoints(web)); got != want {
		t.Errorf("endpoints are %q, want %q", got, want)
	}
}

func TestEndpointBeforeService(t *testing.T) {
	s := NewStore()
	s.Apply(Update{Workloads: []*Workload{pod("b", "10.0.0.2", inService(web, nil)), pod("a", "10.0.0.1", inService(web, nil))}})
	wantEndpoints(t, s, "")
	s.Apply(Update{Services: []*Service{service(web, "10.1.0.1")}})
	wantEndpoints(t, s, "a b")
}

func TestServiceThatComesBackHasItsEndpoints(t *testing.T) {
	s := NewStore()
	s.Apply(Update{Workloads: []*Workload{pod("a", "10.0.0.1", inService(web, nil))}, Services: []*Service{service(web, "10.1.0.1")}})
	s.Apply(Update{RemoveAddresses: []string{web.String()}})
	wantEndpoints(t, s, "")
	if svc := s.ServiceByVIP("", netip.MustParseAddr("10.1.0.1"), ""); svc != nil {
		t.Errorf("removed service is still found: %+v", svc)
	}
	s.Apply(Update{Services: []*Service{service(web, "10.1.0.9")}})
	wantEndpoints(t, s, "a")
}

func TestServiceUpdateKeepsEndpoints(t *testing.T) {
	s := NewStore()
	s.Apply(Update{Workloads: []*Workload{pod("a", "10.0.0.1", inService(web, nil))}, Services: []*Service{service(web, "10.1.0.1")}})
	s.Apply(Update{Services: []*Service{service(web, "10.1.0.2")}})
	wantEndpoints(t, s, "a")
	if svc := s.ServiceByVIP("", netip.MustParseAddr("10.1.0.1"), ""); svc != nil {
		t.Error("the old VIP is still found")
	}
}

func TestHealthDecidesEndpoints(t *testing.T) {
	s := NewStore()
	all := func(svc *Service) { svc.LoadBalancing.AllowUnhealthy = true }
	s.Apply(Update{
		Workloads: []*Workload{pod("a", "10.0.0.1", inService(web, nil)), pod("b", "10.0.0.2", inService(web, nil), unhealthy)},
		Services:  []*Service{service(web, "10.1.0.1")},
	})
	wantEndpoints(t, s, "a")
	s.Apply(Update{Services: []*Service{service(web, "10.1.0.1", all)}})
	wantEndpoints(t, s, "a b")
	s.Apply(Update{Services: []*Service{service(web, "10.1.0.1")}, Workloads: []*Workload{pod("a", "10.0.0.1", inService(web, nil), unhealthy)}})
	wantEndpoints(t, s, "")
	s.Apply(Update{Workloads: []*Workload{pod("b", "10.0.0.2", inService(web, nil))}})
	wantEndpoints(t, s, "b")
}

func TestWorkloadThatLeavesItsService(t *testing.T) {
	s := NewStore()
	s.Apply(Update{Workloads: []*Workload{pod("a", "10.0.0.1", inService(web, nil))}, Services: []*Service{service(web, "10.1.0.1")}})
	s.Apply(Update{Workloads: []*Workload{pod("a", "10.0.0.1")}})
	wantEndpoints(t, s, "")
	s.Apply(Update{Workloads: []*Workload{pod("a", "10.0.0.1", inService(web, nil))}})
	s.Apply(Update{RemoveAddresses: []string{"Kubernetes//Pod/shop/a"}})
	wantEndpoints(t, s, "")
	if w := s.WorkloadByAddr("", netip.MustParseAddr("10.0.0.1")); w != nil {
		t.Errorf("removed workload is still found: %+v", w)
	}
}

func TestTargetPort(t *testing.T) {
	svc := service(web, "10.1.0.1", func(s *Service) { s.Ports = map[uint16]uint16{80: 8080, 443: 0} })
	for _, test := range []struct {
		name string
		own  map[uint16]uint16
		port uint16
		want uint16
		ok   bool
	}{
		{"the service's mapping", nil, 80, 8080, true},
		{"the endpoint's own mapping wins", map[uint16]uint16{80: 9090}, 80, 9090, true},
		{"named port that the endpoint knows", map[uint16]uint16{443: 8443}, 443, 8443, true},
		{"named port that the endpoint does not know", nil, 443, 0, false},
		{"endpoint maps to a name", map[uint16]uint16{80: 0}, 80, 8080, true},
		{"port the service does not have", map[uint16]uint16{81: 8081}, 81, 0, false},
	} {
		got, ok := Endpoint{Workload: pod("a", ""), Ports: test.own}.TargetPort(svc, test.port)
		if got != test.want || ok != test.ok {
			t.Errorf("%s: got %d, %v, want %d, %v", test.name, got, ok, test.want, test.ok)
		}
	}
}

func TestRemovalNames(t *testing.T) {
	full := func() *Store {
		s := NewStore()
		s.Apply(Update{
			Workloads: []*Workload{pod("a", "10.0.0.1"), pod("odd", "10.0.0.2", withUID("one/slash")), pod("bare", "10.0.0.3", withUID("none"))},
			Services:  []*Service{service(web, "10.1.0.1")},
			Policies:  []*Policy{{Namespace: "shop", Name: "p"}},
		})
		return s
	}
	for name, want := range map[string]string{
		"Kubernetes//Pod/shop/a": "none one/slash shop/web.shop.svc.cluster.local shop/p",
		"one/slash":              "Kubernetes//Pod/shop/a none shop/web.shop.svc.cluster.local shop/p",
		"none":                   "Kubernetes//Pod/shop/a one/slash shop/web.shop.svc.cluster.local shop/p",
		web.String():             "Kubernetes//Pod/shop/a none one/slash shop/p",
		"no/such":                "Kubernetes//Pod/shop/a none one/slash shop/web.shop.svc.cluster.local shop/p",
		"":                       "Kubernetes//Pod/shop/a none one/slash shop/web.shop.svc.cluster.local shop/p",
	} {
		s := full()
		s.Apply(Update{RemoveAddresses: []string{name}})
		if got := contents(s); got != want {
			t.Errorf("after removal of %q there is %q, want %q", name, got, want)
		}
	}
}

// contents names everything in s.
func contents(s *Store) string {
	var list []string
	for _, w := range s.Workloads() {
		list = append(list, w.UID)
	}
	for _, svc := range s.Services() {
		list = append(list, svc.Key().String())
	}
	for _, p := range s.Policies() {
		list = append(list, p.Key())
	}
	return strings.Join(list, " ")
}

func TestSubscriptionMergesChanges(t *testing.T) {
	s := NewStore()
	sub := s.Subscribe()
	defer sub.Close()
	wantNone := func() {
		t.Helper()
		select {
		case <-sub.C():
			t.Errorf("told of %+v, want nothing", sub.Take())
		default:
		}
	}
	wantChange := func(want Change) {
		t.Helper()
		select {
		case <-sub.C():
			if got := sub.Take(); got != want {
				t.Errorf("told of %+v, want %+v", got, want)
			}
		default:
			t.Errorf("told of nothing, want %+v", want)
		}
	}
	wantNone()
	s.Apply(Update{Workloads: []*Workload{pod("a", "10.0.0.1")}})
	wantChange(Change{Addresses: true, PolicyLists: true})
	s.Apply(Update{Workloads: []*Workload{pod("a", "10.0.0.1")}, RemoveAddresses: []string{"no/such", "none"}, RemovePolicies: []string{"x/y"}})
	wantNone()
	s.Apply(Update{Workloads: []*Workload{pod("a", "10.0.0.2")}})
	wantChange(Change{Addresses: true})
	s.Apply(Update{Workloads: []*Workload{pod("a", "10.0.0.2", func(w *Workload) { w.Policies = []string{"shop/p"} })}})
	s.Apply(Update{Policies: []*Policy{{Namespace: "shop", Name: "p"}}})
	wantChange(Change{Addresses: true, PolicyLists: true, Policies: true})
	s.Apply(Update{Policies: []*Policy{{Namespace: "shop", Name: "p"}}})
	wantNone()
	s.Apply(Update{Policies: []*Policy{{Namespace: "shop", Name: "p", Action: Deny}}})
	wantChange(Change{Policies: true})
	sub.Close()
	s.Apply(Update{RemovePolicies: []string{"shop/p"}})
	wantNone()
}

// TestConcurrentUse is for the race detector; it also checks that lookups see whole updates.
func TestConcurrentUse(t *testing.T) {
	s := NewStore()
	ctx, cancel := context.WithCancel(t.Context())
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for ctx.Err() == nil {
				endpoints := s.Endpoints(web)
				if n := len(endpoints); n != 0 && n != 2 {
					t.Errorf("%d endpoints, want both or none", n)
				}
				for _, e := range endpoints {
					s.PoliciesFor(e.Workload)
				}
				s.WorkloadByAddr("", netip.MustParseAddr("10.0.0.1"))
				s.ServiceByVIP("", netip.MustParseAddr("10.1.0.1"), "shop")
				s.CaptureSet("")
			}
		})
	}
	for i := range 300 {
		if i%3 == 2 {
			s.Apply(Update{RemoveAddresses: []string{"Kubernetes//Pod/shop/a", "Kubernetes//Pod/shop/b", web.String()}})
			continue
		}
		s.Apply(Update{
			Workloads: []*Workload{pod("a", "10.0.0.1", inService(web, nil)), pod("b", "10.0.0.2", inService(web, nil))},
			Services:  []*Service{service(web, fmt.Sprintf("10.1.0.%d", i%9+1))},
			Policies:  []*Policy{{Namespace: "shop", Name: "p", Scope: PolicyScope(i % 3)}},
		})
	}
	cancel()
	readers.Wait()
}

// TestNothingIsLeftBehind: after everything was removed the store is as new.
func TestNothingIsLeftBehind(t *testing.T) {
	s := NewStore()
	s.Apply(Update{
		Workloads: []*Workload{pod("a", "10.0.0.1", inService(web, map[uint16]uint16{80: 1}), func(w *Workload) { w.Hostname = "a.example" })},
		Services:  []*Service{service(web, "10.1.0.1")},
		Policies:  []*Policy{{Namespace: "shop", Name: "p", Scope: PolicyNamespace}, {Name: "g", Scope: PolicyGlobal}},
	})
	s.Apply(Update{RemoveAddresses: []string{"Kubernetes//Pod/shop/a", web.String()}, RemovePolicies: []string{"shop/p", "/g"}})
	wantNew(t, s)
}

func wantNew(t *testing.T, s *Store) {
	t.Helper()
	for name, m := range map[string]any{
		"workloads": s.workloads, "byAddr": s.byAddr.byKey, "byName": s.byName.byKey, "byHost": s.byHost.byKey, "members": s.members,
		"services": s.services, "endpoints": s.endpoints, "hosts": s.hosts.byKey, "vips": s.vips.byKey,
		"policies": s.policies, "global": s.global.byKey, "byNamespace": s.byNamespace.byKey, "fadings": s.fadings,
	} {
		if n := reflect.ValueOf(m).Len(); n != 0 {
			t.Errorf("%s still holds %d: %v", name, n, m)
		}
	}
	for network, p := range s.ranges {
		if len(p.services.byKey)+len(p.sorted) != 0 {
			t.Errorf("ranges of %q still hold %v", network, p)
		}
	}
}

func BenchmarkLookups(b *testing.B) {
	s := NewStore()
	var u Update
	for i := range 10000 {
		key := ServiceKey{"shop", fmt.Sprintf("svc%d", i%1000)}
		u.Workloads = append(u.Workloads, pod(fmt.Sprint("p", i), fmt.Sprintf("10.0.%d.%d", i/250, i%250), inService(key, nil)))
		if i < 1000 {
			u.Services = append(u.Services, service(key, fmt.Sprintf("10.1.%d.%d", i/250, i%250)))
		}
	}
	s.Apply(u)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		vip, addr := netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("10.0.2.3")
		for pb.Next() {
			s.Endpoints(s.ServiceByVIP("", vip, "shop").Key())
			s.WorkloadByAddr("", addr)
		}
	})
}
