// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/sluice-mesh/sluice/ztunnel/discovery"
	"github.com/sluice-mesh/sluice/ztunnel/identity"
	"github.com/sluice-mesh/sluice/ztunnel/policy"
)

var (
	client = policy.Input{
		Source:   policy.Identity{TrustDomain: "td", Namespace: "shop", ServiceAccount: "cart"},
		SourceIP: netip.MustParseAddr("10.0.0.1"),
		Dest:     netip.MustParseAddrPort("10.0.0.2:8080"),
	}
	nobody  = policy.Input{SourceIP: client.SourceIP, Dest: client.Dest}
	client6 = policy.Input{
		Source: client.Source, SourceIP: netip.MustParseAddr("fd00:1::1"), Dest: netip.MustParseAddrPort("[fd00:1::2]:8080"),
	}
)

func exact(s string) []discovery.StringMatch {
	return []discovery.StringMatch{{Kind: discovery.MatchExact, Value: s}}
}

func prefix(s string) []discovery.StringMatch {
	return []discovery.StringMatch{{Kind: discovery.MatchPrefix, Value: s}}
}

func suffix(s string) []discovery.StringMatch {
	return []discovery.StringMatch{{Kind: discovery.MatchSuffix, Value: s}}
}

func presence() []discovery.StringMatch {
	return []discovery.StringMatch{{Kind: discovery.MatchPresence}}
}

func ranges(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func accounts(namespace, name string) []discovery.ServiceAccount {
	return []discovery.ServiceAccount{{Namespace: namespace, Name: name}}
}

// one is a policy of one group of one clause of the matches.
func one(action discovery.Action, matches ...discovery.Match) *discovery.Policy {
	return &discovery.Policy{
		Namespace: "shop", Name: "p", Action: action,
		Groups: []discovery.Group{{Clauses: []discovery.Clause{{Matches: matches}}}},
	}
}

func TestEveryMatcher(t *testing.T) {
	for _, test := range []struct {
		name  string
		in    policy.Input
		match discovery.Match
		want  bool
	}{
		{"principal exact", client, discovery.Match{Principals: exact("td/ns/shop/sa/cart")}, true},
		{"principal of another account", client, discovery.Match{Principals: exact("td/ns/shop/sa/other")}, false},
		{"principal with the scheme never matches", client, discovery.Match{Principals: exact("spiffe://td/ns/shop/sa/cart")}, false},
		{"principal is case sensitive", client, discovery.Match{Principals: exact("TD/ns/shop/sa/cart")}, false},
		{"principal prefix", client, discovery.Match{Principals: prefix("td/ns/shop/")}, true},
		{"principal prefix after the scheme only", client, discovery.Match{Principals: prefix("spiffe://")}, false},
		{"principal suffix", client, discovery.Match{Principals: suffix("/cart")}, true},
		{"principal other suffix", client, discovery.Match{Principals: suffix("/car")}, false},
		{"principal presence", client, discovery.Match{Principals: presence()}, true},
		{"principal presence of nobody", nobody, discovery.Match{Principals: presence()}, false},
		{"principal empty prefix of nobody", nobody, discovery.Match{Principals: prefix("")}, false},
		{"not principal", client, discovery.Match{NotPrincipals: exact("td/ns/shop/sa/cart")}, false},
		{"not another principal", client, discovery.Match{NotPrincipals: exact("td/ns/shop/sa/other")}, true},
		{"not principal presence is nobody", nobody, discovery.Match{NotPrincipals: presence()}, true},
		{"not principal presence is not somebody", client, discovery.Match{NotPrincipals: presence()}, false},

		{"namespace exact", client, discovery.Match{Namespaces: exact("shop")}, true},
		{"namespace other", client, discovery.Match{Namespaces: exact("sho")}, false},
		{"namespace prefix", client, discovery.Match{Namespaces: prefix("sh")}, true},
		{"namespace suffix", client, discovery.Match{Namespaces: suffix("op")}, true},
		{"namespace presence", client, discovery.Match{Namespaces: presence()}, true},
		{"namespace presence of nobody", nobody, discovery.Match{Namespaces: presence()}, false},
		{"not namespace", client, discovery.Match{NotNamespaces: exact("shop")}, false},
		{"not another namespace", nobody, discovery.Match{NotNamespaces: exact("shop")}, true},

		{"service account", client, discovery.Match{ServiceAccounts: accounts("shop", "cart")}, true},
		{"service account of another namespace", client, discovery.Match{ServiceAccounts: accounts("mall", "cart")}, false},
		{"service account of nobody", nobody, discovery.Match{ServiceAccounts: accounts("", "")}, false},
		{"not service account", client, discovery.Match{NotServiceAccounts: accounts("shop", "cart")}, false},
		{"not service account of nobody", nobody, discovery.Match{NotServiceAccounts: accounts("shop", "cart")}, true},

		{"source address", client, discovery.Match{SourceIPs: ranges("10.0.0.1/32")}, true},
		{"source range", client, discovery.Match{SourceIPs: ranges("192.168.0.0/16", "10.0.0.0/8")}, true},
		{"source outside", client, discovery.Match{SourceIPs: ranges("10.0.1.0/24")}, false},
		{"source of the other family", client, discovery.Match{SourceIPs: ranges("::/0")}, false},
		{"source IPv6", client6, discovery.Match{SourceIPs: ranges("fd00:1::/64")}, true},
		{"not source", client, discovery.Match{NotSourceIPs: ranges("10.0.0.0/8")}, false},
		{"not source IPv6", client6, discovery.Match{NotSourceIPs: ranges("10.0.0.0/8")}, true},

		{"destination address", client, discovery.Match{DestinationIPs: ranges("10.0.0.2/32")}, true},
		{"destination IPv6", client6, discovery.Match{DestinationIPs: ranges("fd00:1::2/128")}, true},
		{"destination outside", client, discovery.Match{DestinationIPs: ranges("10.0.0.1/32")}, false},
		{"not destination", client, discovery.Match{NotDestinationIPs: ranges("10.0.0.2/32")}, false},

		{"port", client, discovery.Match{DestinationPorts: []uint16{80, 8080}}, true},
		{"other port", client, discovery.Match{DestinationPorts: []uint16{80}}, false},
		{"not port", client, discovery.Match{NotDestinationPorts: []uint16{8080}}, false},
		{"not other port", client, discovery.Match{NotDestinationPorts: []uint16{80}}, true},

		{"empty match never matches", client, discovery.Match{}, false},
		{"kinds are all needed", client, discovery.Match{Namespaces: exact("shop"), DestinationPorts: []uint16{80}}, false},
		{"positive and negative of a kind", client, discovery.Match{Namespaces: presence(), NotNamespaces: exact("shop")}, false},
		{"source with a zone", policy.Input{SourceIP: netip.MustParseAddr("fe80::1%eth0"), Dest: client6.Dest}, discovery.Match{SourceIPs: ranges("fe80::/10")}, true},
		{"destination with a zone", policy.Input{SourceIP: client6.SourceIP, Dest: netip.MustParseAddrPort("[fe80::2%eth0]:80")}, discovery.Match{DestinationIPs: ranges("fe80::/10")}, true},
		{"mapped source is IPv4", policy.Input{SourceIP: netip.MustParseAddr("::ffff:10.0.0.1"), Dest: client.Dest}, discovery.Match{SourceIPs: ranges("10.0.0.0/8")}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := !policy.Decide(test.in, []*discovery.Policy{one(discovery.Deny, test.match)}).Allow; got != test.want {
				t.Errorf("match %+v of %+v = %v, want %v", test.match, test.in, got, test.want)
			}
		})
	}
}

func TestGroupsClausesAndMatchesCombine(t *testing.T) {
	yes := discovery.Match{Namespaces: exact("shop")}
	no := discovery.Match{Namespaces: exact("mall")}
	clause := func(matches ...discovery.Match) discovery.Clause { return discovery.Clause{Matches: matches} }
	group := func(clauses ...discovery.Clause) discovery.Group { return discovery.Group{Clauses: clauses} }
	for _, test := range []struct {
		name   string
		groups []discovery.Group
		want   bool
	}{
		{"no group never matches", nil, false},
		{"empty group matches everything", []discovery.Group{group()}, true},
		{"empty clause matches everything", []discovery.Group{group(clause())}, true},
		{"empty match never matches", []discovery.Group{group(clause(discovery.Match{}))}, false},
		{"empty match beside a good one", []discovery.Group{group(clause(discovery.Match{}, yes))}, true},
		{"groups are alternatives", []discovery.Group{group(clause(no)), group(clause(yes))}, true},
		{"no group fits", []discovery.Group{group(clause(no)), group(clause(no))}, false},
		{"clauses are all needed", []discovery.Group{group(clause(yes), clause(no))}, false},
		{"all clauses fit", []discovery.Group{group(clause(yes), clause(yes))}, true},
		{"matches are alternatives", []discovery.Group{group(clause(no, yes))}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := &discovery.Policy{Namespace: "shop", Name: "p", Action: discovery.Deny, Groups: test.groups}
			if got := !policy.Decide(client, []*discovery.Policy{p}).Allow; got != test.want {
				t.Errorf("matches = %v, want %v", got, test.want)
			}
		})
	}
}

func TestDecide(t *testing.T) {
	named := func(p *discovery.Policy, name string) *discovery.Policy {
		p.Name = name
		return p
	}
	dry := func(p *discovery.Policy) *discovery.Policy {
		p.DryRun = true
		return p
	}
	mine := discovery.Match{Principals: exact("td/ns/shop/sa/cart")}
	other := discovery.Match{Principals: exact("td/ns/shop/sa/other")}
	denied := policy.Decision{Policy: "shop/deny", Reason: "explicitly denied by: shop/deny"}
	none := policy.Decision{Reason: "allow policies exist, but none allowed"}
	const allow, deny = discovery.Allow, discovery.Deny
	for _, test := range []struct {
		name     string
		policies []*discovery.Policy
		want     policy.Decision
	}{
		{"no policy allows", nil, policy.Decision{Allow: true}},
		{"deny that matches", []*discovery.Policy{named(one(deny, mine), "deny")}, denied},
		{"deny that does not match", []*discovery.Policy{one(deny, other)}, policy.Decision{Allow: true}},
		{"allow that matches", []*discovery.Policy{named(one(allow, mine), "allow")}, policy.Decision{Allow: true, Policy: "shop/allow"}},
		{"allow for someone else", []*discovery.Policy{one(allow, other)}, none},
		{"allow without rules allows nobody", []*discovery.Policy{{Name: "p", Action: allow}}, none},
		{"any allow is enough", []*discovery.Policy{one(allow, other), named(one(allow, mine), "allow")}, policy.Decision{Allow: true, Policy: "shop/allow"}},
		{"deny over allow", []*discovery.Policy{one(allow, mine), named(one(deny, mine), "deny")}, denied},
		{"deny that does not match leaves allow", []*discovery.Policy{one(deny, other), named(one(allow, mine), "allow")}, policy.Decision{Allow: true, Policy: "shop/allow"}},
		{"dry-run deny has no effect", []*discovery.Policy{dry(named(one(deny, mine), "deny"))}, policy.Decision{Allow: true, DryRun: []string{"shop/deny"}}},
		{"dry-run allow restricts nobody", []*discovery.Policy{dry(one(allow, other))}, policy.Decision{Allow: true}},
		{"dry-run allow allows nobody", []*discovery.Policy{dry(named(one(allow, mine), "dry")), one(allow, other)}, policy.Decision{Reason: none.Reason, DryRun: []string{"shop/dry"}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := policy.Decide(client, test.policies)
			if got.Allow != test.want.Allow || got.Policy != test.want.Policy || got.Reason != test.want.Reason || !slices.Equal(got.DryRun, test.want.DryRun) {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
			backwards := slices.Clone(test.policies)
			slices.Reverse(backwards)
			if reversed := policy.Decide(client, backwards); reversed.Allow != got.Allow || reversed.Reason != got.Reason {
				t.Errorf("in the other order got %+v, want %+v", reversed, got)
			}
		})
	}
}

func TestStrictPolicyRefusesOnlyNobody(t *testing.T) {
	strict := []*discovery.Policy{{
		Namespace: "istio-system", Name: "istio_converted_static_strict", Action: discovery.Deny,
		Groups: []discovery.Group{{Clauses: []discovery.Clause{{Matches: []discovery.Match{{NotPrincipals: presence()}}}}}},
	}}
	if d := policy.Decide(client, strict); !d.Allow {
		t.Errorf("a client with identity got %+v, want allowed", d)
	}
	d := policy.Decide(nobody, strict)
	if want := "explicitly denied by: istio-system/istio_converted_static_strict"; d.Allow || d.Reason != want {
		t.Errorf("plain TCP got %+v, want refused with %q", d, want)
	}
}

// TestStrictWithPermissivePort: ambient section 6.6, selector PeerAuthentication with a port-level exception.
func TestStrictWithPermissivePort(t *testing.T) {
	p := &discovery.Policy{Namespace: "shop", Name: "converted_peer_authentication_x", Action: discovery.Deny, Groups: []discovery.Group{{
		Clauses: []discovery.Clause{
			{Matches: []discovery.Match{{NotPrincipals: presence()}}},
			{Matches: []discovery.Match{{NotDestinationPorts: []uint16{9090}}}},
		},
	}}}
	for port, want := range map[uint16]bool{8080: false, 9090: true} {
		in := nobody
		in.Dest = netip.AddrPortFrom(in.Dest.Addr(), port)
		if got := policy.Decide(in, []*discovery.Policy{p}).Allow; got != want {
			t.Errorf("plain TCP to port %d allowed = %v, want %v", port, got, want)
		}
	}
}

func TestIdentityConverts(t *testing.T) {
	id, err := identity.ParseIdentity("spiffe://td/ns/shop/sa/cart")
	if err != nil {
		t.Fatal(err)
	}
	if got := policy.Identity(id); got != client.Source {
		t.Errorf("got %+v, want %+v", got, client.Source)
	}
}

func BenchmarkDecide(b *testing.B) {
	policies := []*discovery.Policy{
		one(discovery.Deny, discovery.Match{NotPrincipals: presence()}),
		one(discovery.Deny, discovery.Match{Namespaces: exact("mall")}),
		one(discovery.Allow, discovery.Match{Principals: exact("td/ns/shop/sa/cart"), DestinationPorts: []uint16{8080}}),
	}
	b.ReportAllocs()
	for b.Loop() {
		policy.Decide(client, policies)
	}
}
