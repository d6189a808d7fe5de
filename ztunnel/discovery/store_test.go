// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
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

func TestDuplicatesByIP(t *testing.T) {
	addr := netip.MustParseAddr("10.0.0.1")
	entry := pod("entry", "10.0.0.1", withUID("c/networking.istio.io/WorkloadEntry/shop/entry"))
	entryTCP := pod("tcp", "10.0.0.1", withUID("a/tcp"), plain)
	podTCP := pod("podtcp", "10.0.0.1", plain)
	podHBONE := pod("podhbone", "10.0.0.1")
	for _, test := range []struct {
		have []*Workload
		want *Workload
	}{
		{[]*Workload{entryTCP, entry}, entry},
		{[]*Workload{entry, podTCP}, podTCP},
		{[]*Workload{podTCP, podHBONE, entry}, podHBONE},
	} {
		for range 2 {
			s := NewStore()
			s.Apply(Update{Workloads: test.have})
			if got := s.WorkloadByAddr("", addr); got != test.want {
				t.Errorf("got %s, want %s", got.UID, test.want.UID)
			}
			s.Apply(Update{RemoveAddresses: []string{test.want.UID}})
			if got := s.WorkloadByAddr("", addr); got == nil || got == test.want {
				t.Errorf("after removal of %s got %v", test.want.UID, got)
			}
			slices.Reverse(test.have)
		}
	}
}

func TestWorkloadLookups(t *testing.T) {
	s := NewStore()
	host := func(w *Workload) { w.HostNetwork = true }
	far := func(w *Workload) { w.Network = "far" }
	s.Apply(Update{Workloads: []*Workload{
		pod("a", "10.0.0.1"), pod("six", "fd00:1::1"), pod("node", "10.0.0.3", host), pod("far", "10.0.0.4", far),
		pod("dns", "", func(w *Workload) { w.Hostname = "db.example" }),
	}})
	for _, test := range []struct{ network, addr, want string }{
		{"", "10.0.0.1", "a"}, {"", "::ffff:10.0.0.1", "a"}, {"", "fd00:1::1", "six"}, {"", "10.0.0.2", ""},
		{"", "10.0.0.3", ""}, {"", "10.0.0.4", ""}, {"far", "10.0.0.4", "far"}, {"far", "10.0.0.1", ""},
	} {
		got := ""
		if w := s.WorkloadByAddr(test.network, netip.MustParseAddr(test.addr)); w != nil {
			got = w.Name
		}
		if got != test.want {
			t.Errorf("WorkloadByAddr(%q, %s) is %q, want %q", test.network, test.addr, got, test.want)
		}
	}
	if w := s.WorkloadByUID("Kubernetes//Pod/shop/node"); w == nil || !w.HostNetwork {
		t.Errorf("WorkloadByUID of a host network pod: %+v", w)
	}
	if w := s.WorkloadByHostname("db.example", "shop"); w == nil || w.Name != "dns" {
		t.Errorf("WorkloadByHostname: %+v", w)
	}
	if list := s.WorkloadsByName("shop", "a"); len(list) != 1 || list[0].Name != "a" {
		t.Errorf("WorkloadsByName: %+v", list)
	}
	if id := s.WorkloadByUID("Kubernetes//Pod/shop/a").Identity().String(); id != "spiffe://cluster.local/ns/shop/sa/a" {
		t.Errorf("identity is %s", id)
	}
}

func TestServiceLookups(t *testing.T) {
	host := "web.example"
	mall, zoo := ServiceKey{"mall", host}, ServiceKey{"zoo", host}
	aaa := ServiceKey{"aaa", host}
	cidr := func(prefix string) func(*Service) {
		return func(s *Service) { s.VIPs, s.CIDRVIPs = nil, []NetworkPrefix{{Prefix: netip.MustParsePrefix(prefix)}} }
	}
	wide, narrow := ServiceKey{"wide", "wide.example"}, ServiceKey{"narrow", "narrow.example"}
	s := NewStore()
	s.Apply(Update{Services: []*Service{
		service(mall, "10.1.0.1", private), service(zoo, "10.1.0.1", canonical), service(aaa, "10.1.0.1"),
		service(wide, "10.1.0.9", cidr("10.2.0.0/16")), service(narrow, "10.1.0.9", cidr("10.2.1.0/24")),
		service(ServiceKey{"shop", "exact.example"}, "10.2.1.1"),
		service(ServiceKey{"shop", "hidden.example"}, "10.3.0.1", private),
	}})
	for _, test := range []struct{ addr, client, want string }{
		{"10.1.0.1", "other", "zoo/" + host},       // canonical
		{"10.1.0.1", "mall", "mall/" + host},       // own namespace, though private and not canonical
		{"10.1.0.1", "aaa", "aaa/" + host},         // own namespace
		{"10.2.1.1", "wide", "shop/exact.example"}, // single address before ranges
		{"10.2.1.2", "x", "narrow/narrow.example"}, // longest prefix
		{"10.2.1.2", "wide", "wide/wide.example"},  // own namespace before longest
		{"10.2.9.9", "x", "wide/wide.example"},     //
		{"10.3.0.1", "shop", "shop/hidden.example"},
		{"10.3.0.1", "other", ""},
		{"10.9.9.9", "shop", ""},
		{"fd00::1", "shop", ""},
	} {
		got := ""
		if svc := s.ServiceByVIP("", netip.MustParseAddr(test.addr), test.client); svc != nil {
			got = svc.Key().String()
		}
		if got != test.want {
			t.Errorf("ServiceByVIP(%s) from %q is %q, want %q", test.addr, test.client, got, test.want)
		}
	}
	for _, test := range []struct{ namespace, client, want string }{
		{"", "other", "zoo"}, {"", "aaa", "aaa"}, {"", "mall", "mall"}, {"aaa", "zoo", "aaa"}, {"mall", "zoo", ""}, {"none", "zoo", ""},
	} {
		got := ""
		if svc := s.ServiceByHostname(test.namespace, host, test.client); svc != nil {
			got = svc.Namespace
		}
		if got != test.want {
			t.Errorf("ServiceByHostname(%q) from %q is in %q, want %q", test.namespace, test.client, got, test.want)
		}
	}
	if svc := s.Service(mall); svc == nil || !svc.Private {
		t.Errorf("Service(%v) is %+v", mall, svc)
	}
	s.Apply(Update{RemoveAddresses: []string{narrow.String(), wide.String()}})
	if svc := s.ServiceByVIP("", netip.MustParseAddr("10.2.1.2"), "x"); svc != nil {
		t.Errorf("removed range is still found: %+v", svc)
	}
}

func TestPoliciesFor(t *testing.T) {
	policy := func(namespace, name string, scope PolicyScope) *Policy {
		return &Policy{Namespace: namespace, Name: name, Scope: scope}
	}
	s := NewStore()
	s.Apply(Update{Policies: []*Policy{
		policy("root", "global", PolicyGlobal), policy("shop", "ns", PolicyNamespace), policy("mall", "ns", PolicyNamespace),
		policy("shop", "mine", PolicyWorkload), policy("shop", "theirs", PolicyWorkload),
	}})
	w := pod("a", "10.0.0.1", func(w *Workload) {
		w.Policies = []string{"mall/ns", "root/global", "shop/mine", "shop/unknown"}
	})
	keys := func() string {
		var list []string
		for _, p := range s.PoliciesFor(w) {
			list = append(list, p.Key())
		}
		return strings.Join(list, " ")
	}
	if got, want := keys(), "root/global shop/ns shop/mine"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := s.MissingPolicies(w); !slices.Equal(got, []string{"shop/unknown"}) {
		t.Errorf("missing %v, want shop/unknown", got)
	}
	s.Apply(Update{Policies: []*Policy{policy("shop", "ns", PolicyWorkload)}})
	if got, want := keys(), "root/global shop/mine"; got != want {
		t.Errorf("after a change of scope got %q, want %q", got, want)
	}
	s.Apply(Update{RemovePolicies: []string{"root/global", "shop/mine", "no/such"}})
	if got := keys(); got != "" {
		t.Errorf("after removal got %q, want none", got)
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

func TestWaitWorkload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewStore()
		match := func(w *Workload) bool { return w.Name == "late" }
		time.AfterFunc(time.Second, func() { s.Apply(Update{Workloads: []*Workload{pod("other", "10.0.0.1")}}) })
		time.AfterFunc(2*time.Second, func() { s.Apply(Update{Workloads: []*Workload{pod("late", "10.0.0.2")}}) })
		begin := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		w, err := s.WaitWorkload(ctx, match)
		if err != nil || w.Name != "late" || time.Since(begin) != 2*time.Second {
			t.Errorf("got %v, %v after %v", w, err, time.Since(begin))
		}
		if w, err := s.WaitWorkload(ctx, match); err != nil || w.Name != "late" {
			t.Errorf("one that is there: %v, %v", w, err)
		}
		if _, err := s.WaitWorkload(ctx, func(*Workload) bool { return false }); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("one that never comes: %v", err)
		}
		if len(s.subscribers) != 0 {
			t.Errorf("%d subscriptions left", len(s.subscribers))
		}
	})
}

func TestCaptureSet(t *testing.T) {
	way := &Gateway{Hostname: ServiceKey{"infra", "waypoint"}, Port: DefaultHBONEPort}
	second, third := ServiceKey{"shop", "second"}, ServiceKey{"shop", "third"}
	for _, test := range []struct {
		name    string
		update  Update
		want    string
		partial bool
	}{
		{name: "nothing", want: ""},
		{name: "HBONE pods of both families", update: Update{Workloads: []*Workload{pod("a", "10.0.0.1"), pod("b", "fd00:1::1")}}, want: "10.0.0.1 fd00:1::1"},
		{name: "plain pods", update: Update{Workloads: []*Workload{pod("a", "10.0.0.1", plain)}}},
		{name: "plain pod behind a waypoint", update: Update{Workloads: []*Workload{pod("a", "10.0.0.1", plain, func(w *Workload) { w.Waypoint = way })}}, want: "10.0.0.1"},
		{name: "host network", update: Update{Workloads: []*Workload{pod("a", "10.0.0.1", func(w *Workload) { w.HostNetwork = true })}}},
		{name: "other network", update: Update{Workloads: []*Workload{pod("a", "10.0.0.1", func(w *Workload) { w.Network = "far" })}}},
		{name: "VIP with a pod", update: Update{
			Workloads: []*Workload{pod("a", "10.0.0.1", inService(web, nil)), pod("b", "10.0.0.2", plain, inService(web, nil)), pod("c", "10.0.0.3", plain, inService(second, nil))},
			Services:  []*Service{service(web, "10.1.0.1"), service(second, "10.1.0.2"), service(third, "10.1.0.3")},
		}, want: "10.0.0.1 10.1.0.1"},
		{name: "VIP whose only pod is unready", update: Update{
			Workloads: []*Workload{pod("a", "10.0.0.1", inService(web, nil), unhealthy)}, Services: []*Service{service(web, "10.1.0.1")},
		}, want: "10.0.0.1 10.1.0.1"},
		{name: "VIP with a pod on another network", update: Update{
			Workloads: []*Workload{pod("a", "10.0.0.1", inService(web, nil), func(w *Workload) { w.Network = "far" })}, Services: []*Service{service(web, "10.1.0.1")},
		}, want: "10.1.0.1"},
		{name: "VIP behind a waypoint", update: Update{Services: []*Service{service(web, "10.1.0.1", func(s *Service) { s.Waypoint = way })}}, want: "10.1.0.1"},
		{name: "range outside the mesh", update: Update{Services: []*Service{service(web, "10.1.0.1", func(s *Service) {
			s.CIDRVIPs = []NetworkPrefix{{Prefix: netip.MustParsePrefix("10.2.0.0/16")}}
		})}}},
		{name: "range in the mesh", update: Update{Services: []*Service{service(web, "10.1.0.1", func(s *Service) {
			s.CIDRVIPs, s.Waypoint = []NetworkPrefix{{Prefix: netip.MustParsePrefix("10.2.0.0/16")}}, way
		})}}, want: "10.1.0.1", partial: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := NewStore()
			s.Apply(test.update)
			got := s.CaptureSet("")
			if list := strings.Trim(fmt.Sprint(got.Addrs), "[]"); list != test.want || got.Complete == test.partial {
				t.Errorf("got %q complete %v, want %q complete %v", list, got.Complete, test.want, !test.partial)
			}
		})
	}
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
		"policies": s.policies, "global": s.global.byKey, "byNamespace": s.byNamespace.byKey,
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
	b.RunParallel(func(pb *testing.PB) {
		vip, addr := netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("10.0.2.3")
		for pb.Next() {
			s.Endpoints(s.ServiceByVIP("", vip, "shop").Key())
			s.WorkloadByAddr("", addr)
		}
	})
}
