// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"net/netip"
	"testing"

	"github.com/sluice-mesh/sluice/ztunnel/discovery"
	"github.com/sluice-mesh/sluice/ztunnel/policy"
)

// kind is a pair of lists of a Match. hit and miss put what the client is, or is not, into one of them.
type kind struct {
	name      string
	hit, miss func(m *discovery.Match, negative bool)
	// nobody tells whether hit in the positive list matches a connection without identity.
	nobody bool
}

// into returns what puts list into either of two fields.
func into[T any](positive, negative func(*discovery.Match) *[]T, list []T) func(*discovery.Match, bool) {
	return func(m *discovery.Match, isNegative bool) {
		field := positive
		if isNegative {
			field = negative
		}
		*field(m) = append(*field(m), list...)
	}
}

func kindOf[T any](name string, positive, negative func(*discovery.Match) *[]T, hit, miss []T, nobody bool) kind {
	return kind{name, into(positive, negative, hit), into(positive, negative, miss), nobody}
}

func stringKinds() []kind {
	var all []kind
	principals := func(m *discovery.Match) *[]discovery.StringMatch { return &m.Principals }
	notPrincipals := func(m *discovery.Match) *[]discovery.StringMatch { return &m.NotPrincipals }
	namespaces := func(m *discovery.Match) *[]discovery.StringMatch { return &m.Namespaces }
	notNamespaces := func(m *discovery.Match) *[]discovery.StringMatch { return &m.NotNamespaces }
	for _, form := range []struct {
		name string
		of   func(string) []discovery.StringMatch
		// what of the client's principal and namespace it takes
		principal, namespace string
	}{
		{"exact", exact, "td/ns/shop/sa/cart", "shop"}, {"prefix", prefix, "td/ns/sh", "sh"}, {"suffix", suffix, "op/sa/cart", "op"},
		{"presence", func(string) []discovery.StringMatch { return presence() }, "", ""},
	} {
		miss := form.of("x")
		if form.name == "presence" {
			miss = exact("x") // somebody always has a name
		}
		all = append(all,
			kindOf("principals "+form.name, principals, notPrincipals, form.of(form.principal), miss, false),
			kindOf("namespaces "+form.name, namespaces, notNamespaces, form.of(form.namespace), miss, false))
	}
	return all
}

func allKinds() []kind {
	return append(stringKinds(),
		kindOf("service accounts", func(m *discovery.Match) *[]discovery.ServiceAccount { return &m.ServiceAccounts },
			func(m *discovery.Match) *[]discovery.ServiceAccount { return &m.NotServiceAccounts },
			accounts("shop", "cart"), accounts("shop", "x"), false),
		kindOf("source IPs", func(m *discovery.Match) *[]netip.Prefix { return &m.SourceIPs },
			func(m *discovery.Match) *[]netip.Prefix { return &m.NotSourceIPs }, ranges("10.0.0.0/30"), ranges("10.0.0.4/30"), true),
		kindOf("destination IPs", func(m *discovery.Match) *[]netip.Prefix { return &m.DestinationIPs },
			func(m *discovery.Match) *[]netip.Prefix { return &m.NotDestinationIPs }, ranges("10.0.0.2/32"), ranges("10.0.0.1/32"), true),
		kindOf("destination ports", func(m *discovery.Match) *[]uint16 { return &m.DestinationPorts },
			func(m *discovery.Match) *[]uint16 { return &m.NotDestinationPorts }, []uint16{8080}, []uint16{15008}, true))
}

// TestEveryMatcherAndItsNegation: ambient sections 6.3 and 6.4, each kind in each list, with and without identity.
func TestEveryMatcherAndItsNegation(t *testing.T) {
	for _, k := range allKinds() {
		match := func(edits ...func(*discovery.Match)) discovery.Match {
			var m discovery.Match
			for _, edit := range edits {
				edit(&m)
			}
			return m
		}
		hit := func(m *discovery.Match) { k.hit(m, false) }
		miss := func(m *discovery.Match) { k.miss(m, false) }
		notHit := func(m *discovery.Match) { k.hit(m, true) }
		notMiss := func(m *discovery.Match) { k.miss(m, true) }
		for _, test := range []struct {
			name             string
			match            discovery.Match
			somebody, nobody bool
		}{
			{"positive", match(hit), true, k.nobody},
			{"positive, another", match(miss), false, false},
			{"positive, any of several", match(miss, hit), true, k.nobody},
			{"negative", match(notHit), false, !k.nobody},
			{"negative, another", match(notMiss), true, true},
			{"negative, none of several", match(notMiss, notHit), false, !k.nobody},
			{"positive and negative, both", match(hit, notHit), false, false},
			{"positive and negative, another", match(hit, notMiss), true, k.nobody},
		} {
			t.Run(k.name+"/"+test.name, func(t *testing.T) {
				for in, want := range map[policy.Input]bool{client: test.somebody, nobody: test.nobody} {
					allow := policy.Decide(in, []*discovery.Policy{one(discovery.Allow, test.match)}).Allow
					deny := !policy.Decide(in, []*discovery.Policy{one(discovery.Deny, test.match)}).Allow
					if allow != want || deny != want {
						t.Errorf("identity %v: ALLOW matches %v, DENY matches %v, want %v", in.Source, allow, deny, want)
					}
				}
			})
		}
	}
}
