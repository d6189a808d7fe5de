// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/emptypb"
	securityv1 "istio.io/api/security/v1beta1"
	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-mesh/sluice/internal/securityapi"
)

func policyKey(a *securityapi.Authorization) string { return a.Namespace + "/" + a.Name }

// enforced tells whether ztunnels are told of a policy at all.
func enforced(p *AuthorizationPolicy) bool {
	return p.Spec.Action == securityv1.AuthorizationPolicy_ALLOW || p.Spec.Action == securityv1.AuthorizationPolicy_DENY
}

// selectedBy are the keys of the policies whose selector picks the pod. Policies without one apply by their scope.
func (m mesh) selectedBy(p *corev1.Pod, policies []*AuthorizationPolicy) []string {
	var keys []string
	for _, ap := range policies {
		if ap.Spec.Selector == nil || !enforced(ap) || ap.Namespace != p.Namespace && ap.Namespace != m.rootNamespace {
			continue
		}
		if selects(ap.Spec.Selector.MatchLabels, p.Labels) {
			keys = append(keys, ap.Namespace+"/"+ap.Name)
		}
	}
	return keys
}

// authorization translates a policy, nil for one that ztunnels do not enforce.
func (m mesh) authorization(p *AuthorizationPolicy) *securityapi.Authorization {
	if !enforced(p) {
		return nil
	}
	out := &securityapi.Authorization{Name: p.Name, Namespace: p.Namespace, Scope: m.scope(p)}
	out.DryRun, _ = strconv.ParseBool(p.Annotations[annotationDryRun]) // checked when the file was read
	if p.Spec.Action == securityv1.AuthorizationPolicy_DENY {
		out.Action = securityapi.Action_DENY
	}
	for _, r := range p.Spec.Rules {
		if out.Action == securityapi.Action_ALLOW && len(ruleL7(r)) > 0 {
			continue // fewer allows: what cannot be checked here must not be let through
		}
		out.Groups = append(out.Groups, group(p.Namespace, r))
	}
	return out
}

func (m mesh) scope(p *AuthorizationPolicy) securityapi.Scope {
	switch {
	case p.Spec.Selector != nil:
		return securityapi.Scope_WORKLOAD_SELECTOR
	case p.Namespace == m.rootNamespace:
		return securityapi.Scope_GLOBAL
	default:
		return securityapi.Scope_NAMESPACE
	}
}

// group is one rule: where to AND where from AND each condition. L7 attributes are left out; a match of which nothing
// remains matches nothing.
func group(namespace string, r *securityv1.Rule) *securityapi.Group {
	g := &securityapi.Group{}
	if len(r.To) > 0 {
		clause := &securityapi.Rules{}
		for _, to := range r.To {
			op := to.GetOperation()
			clause.Matches = append(clause.Matches, &securityapi.Match{
				DestinationPorts: ports(op.GetPorts()), NotDestinationPorts: ports(op.GetNotPorts()),
			})
		}
		g.Rules = append(g.Rules, clause)
	}
	if len(r.From) > 0 {
		clause := &securityapi.Rules{}
		for _, from := range r.From {
			clause.Matches = append(clause.Matches, source(namespace, from.GetSource()))
		}
		g.Rules = append(g.Rules, clause)
	}
	for _, w := range r.When {
		g.Rules = append(g.Rules, &securityapi.Rules{Matches: []*securityapi.Match{condition(w)}})
	}
	return g
}

func source(namespace string, s *securityv1.Source) *securityapi.Match {
	return &securityapi.Match{
		Namespaces: patterns(s.GetNamespaces()), NotNamespaces: patterns(s.GetNotNamespaces()),
		Principals: patterns(s.GetPrincipals()), NotPrincipals: patterns(s.GetNotPrincipals()),
		SourceIps: ipBlocks(s.GetIpBlocks()), NotSourceIps: ipBlocks(s.GetNotIpBlocks()),
		ServiceAccounts:    serviceAccounts(namespace, s.GetServiceAccounts()),
		NotServiceAccounts: serviceAccounts(namespace, s.GetNotServiceAccounts()),
	}
}

func condition(w *securityv1.Condition) *securityapi.Match {
	m := &securityapi.Match{}
	switch w.Key {
	case "source.ip":
		m.SourceIps, m.NotSourceIps = ipBlocks(w.Values), ipBlocks(w.NotValues)
	case "source.namespace":
		m.Namespaces, m.NotNamespaces = patterns(w.Values), patterns(w.NotValues)
	case "source.principal":
		m.Principals, m.NotPrincipals = patterns(w.Values), patterns(w.NotValues)
	case "destination.ip":
		m.DestinationIps, m.NotDestinationIps = ipBlocks(w.Values), ipBlocks(w.NotValues)
	case "destination.port":
		m.DestinationPorts, m.NotDestinationPorts = ports(w.Values), ports(w.NotValues)
	}
	return m
}

// ruleL7 names the attributes of a rule that only a proxy which reads requests could match.
func ruleL7(r *securityv1.Rule) []string {
	var names []string
	for i, to := range r.GetTo() {
		for _, f := range operationL7(to.GetOperation()) {
			names = append(names, fmt.Sprintf("to[%d].%s", i, f))
		}
	}
	for i, from := range r.GetFrom() {
		s := from.GetSource()
		names = append(names, present(fmt.Sprintf("from[%d].", i), []field{
			{name: "requestPrincipals", values: s.GetRequestPrincipals()}, {name: "notRequestPrincipals", values: s.GetNotRequestPrincipals()},
			{name: "remoteIpBlocks", values: s.GetRemoteIpBlocks()}, {name: "notRemoteIpBlocks", values: s.GetNotRemoteIpBlocks()},
		})...)
	}
	for _, w := range r.GetWhen() {
		if conditionChecks[w.GetKey()] == nil {
			names = append(names, "when "+w.GetKey())
		}
	}
	return names
}

func operationL7(op *securityv1.Operation) []string {
	return present("", []field{
		{name: "hosts", values: op.GetHosts()}, {name: "notHosts", values: op.GetNotHosts()},
		{name: "methods", values: op.GetMethods()}, {name: "notMethods", values: op.GetNotMethods()},
		{name: "paths", values: op.GetPaths()}, {name: "notPaths", values: op.GetNotPaths()},
	})
}

func present(prefix string, fields []field) []string {
	var names []string
	for _, f := range fields {
		if len(f.values) > 0 {
			names = append(names, prefix+f.name)
		}
	}
	return names
}

// The following convert values that were checked when their file was read.

func patterns(values []string) []*securityapi.StringMatch {
	var out []*securityapi.StringMatch
	for _, v := range values {
		out = append(out, pattern(v))
	}
	return out
}

// pattern: "*" is presence, "*x" ends in x, "x*" starts with x.
func pattern(v string) *securityapi.StringMatch {
	switch {
	case v == "*":
		return &securityapi.StringMatch{MatchType: &securityapi.StringMatch_Presence{Presence: &emptypb.Empty{}}}
	case strings.HasPrefix(v, "*"):
		return &securityapi.StringMatch{MatchType: &securityapi.StringMatch_Suffix{Suffix: v[1:]}}
	case strings.HasSuffix(v, "*"):
		return &securityapi.StringMatch{MatchType: &securityapi.StringMatch_Prefix{Prefix: v[:len(v)-1]}}
	default:
		return &securityapi.StringMatch{MatchType: &securityapi.StringMatch_Exact{Exact: v}}
	}
}

func ipBlocks(values []string) []*securityapi.Address {
	var out []*securityapi.Address
	for _, v := range values {
		if p, err := parseIPBlock(v); err == nil {
			out = append(out, &securityapi.Address{Address: p.Masked().Addr().AsSlice(), Length: uint32(p.Bits())})
		}
	}
	return out
}

func serviceAccounts(namespace string, values []string) []*securityapi.ServiceAccountMatch {
	var out []*securityapi.ServiceAccountMatch
	for _, v := range values {
		m := &securityapi.ServiceAccountMatch{Namespace: namespace, ServiceAccount: v}
		if ns, sa, ok := strings.Cut(v, "/"); ok {
			m.Namespace, m.ServiceAccount = ns, sa
		}
		out = append(out, m)
	}
	return out
}

func ports(values []string) []uint32 {
	var out []uint32
	for _, v := range values {
		if n, err := strconv.ParseUint(v, 10, 16); err == nil {
			out = append(out, uint32(n))
		}
	}
	return out
}
