// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"maps"
	"net/netip"
	"testing"
)

// TestServiceRanks: ambient section 5.8. Each rank decides only among those that are alike in the ranks before it.
func TestServiceRanks(t *testing.T) {
	at := func(namespace, prefix string, edits ...func(*Service)) *Service {
		edits = append(edits, func(s *Service) {
			if p := netip.MustParsePrefix(prefix); !p.IsSingleIP() {
				s.VIPs, s.CIDRVIPs = nil, []NetworkPrefix{{Prefix: p}}
			}
		})
		return service(ServiceKey{namespace, namespace + ".example"}, "10.1.0.1", edits...)
	}
	for _, test := range []struct {
		name          string
		better, worse *Service
	}{
		{"VIP: client's namespace before canonical", at("shop", "10.1.0.1/32"), at("a", "10.1.0.1/32", canonical)},
		{"VIP: canonical before first", at("zoo", "10.1.0.1/32", canonical), at("a", "10.1.0.1/32")},
		{"VIP: visible before hidden", at("zoo", "10.1.0.1/32"), at("a", "10.1.0.1/32", private, canonical)},
		{"VIP before range, though in another namespace", at("zoo", "10.1.0.1/32"), at("shop", "10.1.0.0/24", canonical)},
		{"range: client's namespace before length", at("shop", "10.0.0.0/8"), at("a", "10.1.0.0/24", canonical)},
		{"range: length before canonical", at("zoo", "10.1.0.0/24"), at("a", "10.0.0.0/8", canonical)},
		{"range: canonical before first", at("zoo", "10.1.0.0/24", canonical), at("a", "10.1.0.0/24")},
		{"range: visible before longer and hidden", at("zoo", "10.0.0.0/8"), at("a", "10.1.0.0/24", private)},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, order := range [][]*Service{{test.better, test.worse}, {test.worse, test.better}} {
				s := NewStore()
				s.Apply(Update{Services: order})
				if got := s.ServiceByVIP("", netip.MustParseAddr("10.1.0.1"), "shop"); got != test.better {
					t.Errorf("got %v, want %v", got, test.better)
				}
			}
		})
	}
}

// TestRefusedIsNotHeld: ambient section 5.2. What a NACK was about is not named as held when the stream comes back, so
// that it is sent again; the good part is.
func TestRefusedIsNotHeld(t *testing.T) {
	h := start(t)
	s := h.accept(t)
	s.subscribed(t)
	bad := podMessage("bad", "10.0.0.9")
	bad.TunnelProtocol = 77
	if s.exchange(t, response(AddressType, "n1", workloadResource("w1", bad), workloadResource("w1", podMessage("a", "10.0.0.1")))).GetErrorDetail() == nil {
		t.Error("a bad workload was accepted")
	}
	long := policyResource("p1", policyMessage("bad", ip(33, 10, 0, 0, 0)))
	if s.exchange(t, response(AuthorizationType, "n2", long, policyResource("p1", policyMessage("good", ip(8, 10, 0, 0, 0))))).GetErrorDetail() == nil {
		t.Error("a range that cannot be read was accepted")
	}
	s.end <- nil
	first := h.accept(t).subscribed(t)
	for url, want := range map[string]map[string]string{
		AddressType:       {"c1//Pod/shop/a": "w1"},
		AuthorizationType: {"shop/good": "p1"},
	} {
		if got := first[url].GetInitialResourceVersions(); !maps.Equal(got, want) {
			t.Errorf("%s: held are %v, want %v", url, got, want)
		}
		if n := len(first[url].GetResourceNamesSubscribe()); n != 0 {
			t.Errorf("%s: %d names asked for, want none, which is all", url, n)
		}
	}
}

// TestRemovalsComeAfterResources: a name that one response both brings and removes is gone.
func TestRemovalsComeAfterResources(t *testing.T) {
	h := start(t)
	s := h.accept(t)
	s.subscribed(t)
	r := response(AddressType, "n1", workloadResource("w1", podMessage("a", "10.0.0.1")), workloadResource("w1", podMessage("b", "10.0.0.2")))
	r.RemovedResources = []string{"c1//Pod/shop/a"}
	s.wantACK(t, r)
	if got := contents(h.store); got != "c1//Pod/shop/b" {
		t.Errorf("have %q, want b alone", got)
	}
	s.end <- nil
	if held := h.accept(t).subscribed(t)[AddressType].GetInitialResourceVersions(); len(held) != 1 {
		t.Errorf("held are %v, want b alone", held)
	}
}
