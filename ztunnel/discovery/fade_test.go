// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestScopeChangesBetweenTwoResponses: whichever response of the two comes first, a workload that the policy applies to
// before and after is never without it.
func TestScopeChangesBetweenTwoResponses(t *testing.T) {
	policy := func(scope PolicyScope) Update {
		return Update{Policies: []*Policy{{Namespace: "shop", Name: "p", Scope: scope, Action: Deny}}}
	}
	listed := func(keys ...string) Update {
		return Update{Workloads: []*Workload{pod("a", "10.0.0.1", func(w *Workload) { w.Policies = keys })}}
	}
	remove := Update{RemovePolicies: []string{"shop/p"}}
	for _, test := range []struct {
		name    string
		updates []Update
		now     string // just after the last of updates
		later   string
	}{
		{"namespace to selector, policies first", []Update{listed(), policy(PolicyNamespace), policy(PolicyWorkload)}, "shop/p", ""},
		{"and the list follows", []Update{listed(), policy(PolicyNamespace), policy(PolicyWorkload), listed("shop/p")}, "shop/p", "shop/p"},
		{"namespace to selector, list first", []Update{listed(), policy(PolicyNamespace), listed("shop/p"), policy(PolicyWorkload)}, "shop/p", "shop/p"},
		{"global to namespace", []Update{listed(), policy(PolicyGlobal), policy(PolicyNamespace)}, "shop/p", "shop/p"},
		{"global to selector, policies first", []Update{listed(), policy(PolicyGlobal), policy(PolicyWorkload)}, "shop/p", ""},
		{"selector to namespace, list first", []Update{policy(PolicyWorkload), listed("shop/p"), listed()}, "shop/p", ""},
		{"and the policy follows", []Update{policy(PolicyWorkload), listed("shop/p"), listed(), policy(PolicyNamespace)}, "shop/p", "shop/p"},
		{"selector to namespace, policies first", []Update{policy(PolicyWorkload), listed("shop/p"), policy(PolicyNamespace), listed()}, "shop/p", "shop/p"},
		{"another update of the workload meanwhile", []Update{policy(PolicyWorkload), listed("shop/p"), listed(), listed("shop/x")}, "shop/p", ""},
		{"removal ends it at once", []Update{listed(), policy(PolicyNamespace), policy(PolicyWorkload), remove}, "", ""},
		{"removal of a named one ends it at once", []Update{policy(PolicyWorkload), listed("shop/p"), listed(), remove}, "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testFading(t, test.updates, test.now, test.later) })
		})
	}
}

func testFading(t *testing.T, updates []Update, now, later string) {
	s := NewStore()
	for _, u := range updates {
		s.Apply(u)
	}
	want := func(when, want string) {
		t.Helper()
		var keys []string
		for _, p := range s.PoliciesFor(s.WorkloadByUID("Kubernetes//Pod/shop/a")) {
			keys = append(keys, p.Key())
		}
		if got := strings.Join(keys, " "); got != want {
			t.Errorf("%s: %q applies, want %q", when, got, want)
		}
	}
	want("now", now)
	sub := s.Subscribe()
	defer sub.Close()
	time.Sleep(2 * fadeTime) // of the bubble's clock
	want("later", later)
	if now == later {
		return
	}
	select {
	case <-sub.C():
		if c := sub.Take(); !c.PolicyLists {
			t.Errorf("told of %+v, want that other policies apply", c)
		}
	default:
		t.Error("nobody was told that the policy faded out")
	}
	if len(s.fadings) > 0 || s.fadeTimer {
		t.Errorf("left behind: %v, timer %t", s.fadings, s.fadeTimer)
	}
}

// TestFadingIsForWhomItApplied: other namespaces, and workloads that say something newer, are not concerned.
func TestFadingIsForWhomItApplied(t *testing.T) {
	s := NewStore()
	s.Apply(Update{Policies: []*Policy{{Namespace: "shop", Name: "p", Scope: PolicyNamespace}}})
	s.Apply(Update{Policies: []*Policy{{Namespace: "shop", Name: "p", Scope: PolicyWorkload, Action: Deny}}})
	named := pod("named", "", func(w *Workload) { w.Policies = []string{"shop/p"} })
	if got := s.PoliciesFor(named); len(got) != 1 || got[0].Action != Deny {
		t.Errorf("one that names it: %+v, want the new one alone", got)
	}
	if got := s.PoliciesFor(pod("a", "")); len(got) != 1 || got[0].Action != Allow {
		t.Errorf("one that does not: %+v, want the old one", got)
	}
	if got := s.PoliciesFor(pod("b", "", func(w *Workload) { w.Namespace = "mall" })); len(got) != 0 {
		t.Errorf("one of another namespace: %+v, want none", got)
	}
}
