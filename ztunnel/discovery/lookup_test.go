// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

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
	s.Apply(Update{Policies: []*Policy{policy("shop", "ns", PolicyWorkload)}})
	if got, want := keys(), "root/global shop/mine shop/ns"; got != want {
		t.Errorf("just after a change of scope got %q, want %q", got, want)
	}
	s.Apply(Update{RemovePolicies: []string{"root/global", "shop/mine", "shop/ns", "no/such"}})
	if got := keys(); got != "" {
		t.Errorf("after removal got %q, want none", got)
	}
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
