// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/sluice-mesh/sluice/internal/securityapi"
)

// parsePolicy checks and converts a policy. What cannot be understood is refused as a whole: a policy without its
// unreadable part would match more, or less, than was written.
func parsePolicy(m *securityapi.Authorization) (*Policy, error) {
	p := &Policy{Namespace: m.GetNamespace(), Name: m.GetName(), DryRun: m.GetDryRun()}
	if p.Name == "" {
		return nil, errors.New("name is empty")
	}
	switch scope := m.GetScope(); scope {
	case securityapi.Scope_GLOBAL:
		p.Scope = PolicyGlobal
	case securityapi.Scope_NAMESPACE:
		p.Scope = PolicyNamespace
	case securityapi.Scope_WORKLOAD_SELECTOR:
		p.Scope = PolicyWorkload
	default:
		return nil, fmt.Errorf("scope %s is not supported", scope)
	}
	switch action := m.GetAction(); action {
	case securityapi.Action_ALLOW:
		p.Action = Allow
	case securityapi.Action_DENY:
		p.Action = Deny
	default:
		return nil, fmt.Errorf("action %s is not supported", action)
	}
	for i, raw := range m.GetGroups() {
		g, err := parseGroup(raw)
		if err != nil {
			return nil, fmt.Errorf("groups[%d]: %w", i, err)
		}
		p.Groups = append(p.Groups, g)
	}
	return p, nil
}

func parseGroup(m *securityapi.Group) (Group, error) {
	var g Group
	for i, rules := range m.GetRules() {
		var c Clause
		for j, raw := range rules.GetMatches() {
			match, err := parseMatch(raw)
			if err != nil {
				return Group{}, fmt.Errorf("rules[%d].matches[%d]: %w", i, j, err)
			}
			c.Matches = append(c.Matches, match)
		}
		g.Clauses = append(g.Clauses, c)
	}
	return g, nil
}

func parseMatch(m *securityapi.Match) (Match, error) {
	var out Match
	err := errors.Join(
		parseList(&out.Namespaces, "namespaces", m.GetNamespaces(), parseStringMatch),
		parseList(&out.NotNamespaces, "not_namespaces", m.GetNotNamespaces(), parseStringMatch),
		parseList(&out.Principals, "principals", m.GetPrincipals(), parseStringMatch),
		parseList(&out.NotPrincipals, "not_principals", m.GetNotPrincipals(), parseStringMatch),
		parseList(&out.SourceIPs, "source_ips", m.GetSourceIps(), parseRange),
		parseList(&out.NotSourceIPs, "not_source_ips", m.GetNotSourceIps(), parseRange),
		parseList(&out.DestinationIPs, "destination_ips", m.GetDestinationIps(), parseRange),
		parseList(&out.NotDestinationIPs, "not_destination_ips", m.GetNotDestinationIps(), parseRange),
		parseList(&out.DestinationPorts, "destination_ports", m.GetDestinationPorts(), truncatePort),
		parseList(&out.NotDestinationPorts, "not_destination_ports", m.GetNotDestinationPorts(), truncatePort),
		parseList(&out.ServiceAccounts, "service_accounts", m.GetServiceAccounts(), parseServiceAccount),
		parseList(&out.NotServiceAccounts, "not_service_accounts", m.GetNotServiceAccounts(), parseServiceAccount),
	)
	return out, err
}

// parseList converts each element of a field; the first bad one is named.
func parseList[In, Out any](into *[]Out, field string, list []In, parse func(In) (Out, error)) error {
	for i, raw := range list {
		v, err := parse(raw)
		if err != nil {
			return fmt.Errorf("%s[%d]: %w", field, i, err)
		}
		*into = append(*into, v)
	}
	return nil
}

func parseStringMatch(m *securityapi.StringMatch) (StringMatch, error) {
	switch t := m.GetMatchType().(type) {
	case *securityapi.StringMatch_Exact:
		return StringMatch{MatchExact, t.Exact}, nil
	case *securityapi.StringMatch_Prefix:
		return StringMatch{MatchPrefix, t.Prefix}, nil
	case *securityapi.StringMatch_Suffix:
		return StringMatch{MatchSuffix, t.Suffix}, nil
	case *securityapi.StringMatch_Presence:
		return StringMatch{Kind: MatchPresence}, nil
	}
	return StringMatch{}, errors.New("no kind of match")
}

func parseRange(m *securityapi.Address) (netip.Prefix, error) {
	return parsePrefix(m.GetAddress(), m.GetLength())
}

// truncatePort: ambient section 6.4, ports are truncated to 16 bits.
func truncatePort(n uint32) (uint16, error) { return uint16(n), nil }

func parseServiceAccount(m *securityapi.ServiceAccountMatch) (ServiceAccount, error) {
	return ServiceAccount{Namespace: m.GetNamespace(), Name: m.GetServiceAccount()}, nil
}
