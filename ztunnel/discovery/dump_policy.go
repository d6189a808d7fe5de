// SPDX-License-Identifier: Apache-2.0

package discovery

import "net/netip"

// PolicyDump is one policy of a Dump; rules are groups of clauses of matches.
type PolicyDump struct {
	Name      string          `json:"name"`
	Namespace string          `json:"namespace"`
	Scope     string          `json:"scope"`
	Action    string          `json:"action"`
	DryRun    bool            `json:"dryRun"`
	Rules     [][][]MatchDump `json:"rules"`
}

// MatchDump is one match of a policy. StringMatch is an object with its kind as the key: {"Exact": "x"}.
type MatchDump struct {
	Namespaces          []map[string]any `json:"namespaces,omitempty"`
	NotNamespaces       []map[string]any `json:"notNamespaces,omitempty"`
	Principals          []map[string]any `json:"principals,omitempty"`
	NotPrincipals       []map[string]any `json:"notPrincipals,omitempty"`
	ServiceAccounts     []string         `json:"serviceAccounts,omitempty"`
	NotServiceAccounts  []string         `json:"notServiceAccounts,omitempty"`
	SourceIPs           []netip.Prefix   `json:"sourceIps,omitempty"`
	NotSourceIPs        []netip.Prefix   `json:"notSourceIps,omitempty"`
	DestinationIPs      []netip.Prefix   `json:"destinationIps,omitempty"`
	NotDestinationIPs   []netip.Prefix   `json:"notDestinationIps,omitempty"`
	DestinationPorts    []uint16         `json:"destinationPorts,omitempty"`
	NotDestinationPorts []uint16         `json:"notDestinationPorts,omitempty"`
}

func (p *Policy) dump() PolicyDump {
	d := PolicyDump{
		Name: p.Name, Namespace: p.Namespace, DryRun: p.DryRun, Rules: [][][]MatchDump{},
		Scope:  name([]string{"Global", "Namespace", "WorkloadSelector"}, int(p.Scope)),
		Action: name([]string{"Allow", "Deny"}, int(p.Action)),
	}
	for _, g := range p.Groups {
		clauses := [][]MatchDump{}
		for _, c := range g.Clauses {
			matches := []MatchDump{}
			for _, m := range c.Matches {
				matches = append(matches, m.dump())
			}
			clauses = append(clauses, matches)
		}
		d.Rules = append(d.Rules, clauses)
	}
	return d
}

func (m Match) dump() MatchDump {
	return MatchDump{
		Namespaces: dumpStrings(m.Namespaces), NotNamespaces: dumpStrings(m.NotNamespaces),
		Principals: dumpStrings(m.Principals), NotPrincipals: dumpStrings(m.NotPrincipals),
		ServiceAccounts: dumpAccounts(m.ServiceAccounts), NotServiceAccounts: dumpAccounts(m.NotServiceAccounts),
		SourceIPs: m.SourceIPs, NotSourceIPs: m.NotSourceIPs,
		DestinationIPs: m.DestinationIPs, NotDestinationIPs: m.NotDestinationIPs,
		DestinationPorts: m.DestinationPorts, NotDestinationPorts: m.NotDestinationPorts,
	}
}

func dumpStrings(list []StringMatch) []map[string]any {
	var out []map[string]any
	for _, m := range list {
		switch m.Kind {
		case MatchPresence:
			out = append(out, map[string]any{"Presence": []any{}})
		default:
			out = append(out, map[string]any{name([]string{"Exact", "Prefix", "Suffix"}, int(m.Kind)): m.Value})
		}
	}
	return out
}

func dumpAccounts(list []ServiceAccount) []string {
	var out []string
	for _, a := range list {
		out = append(out, a.Namespace+"/"+a.Name)
	}
	return out
}
