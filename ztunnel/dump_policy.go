// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/sluice-mesh/sluice/ztunnel/discovery"
)

type policyDump struct {
	Name      string        `json:"name"`
	Namespace string        `json:"namespace"`
	Scope     string        `json:"scope"`
	Action    string        `json:"action"`
	Rules     [][][]matches `json:"rules"`
	DryRun    bool          `json:"dryRun"`
}

// matches is one match: the fields that are not empty.
type matches map[string]any

func dumpPolicy(p *discovery.Policy) policyDump {
	d := policyDump{
		Name: p.Name, Namespace: p.Namespace, DryRun: p.DryRun,
		Scope:  nameOf(int32(p.Scope), "Global", "Namespace", "WorkloadSelector"),
		Action: nameOf(int32(p.Action), "Allow", "Deny"),
	}
	for _, group := range p.Groups {
		rule := [][]matches{}
		for _, clause := range group.Clauses {
			list := []matches{}
			for _, m := range clause.Matches {
				list = append(list, dumpMatch(m))
			}
			rule = append(rule, list)
		}
		d.Rules = append(d.Rules, rule)
	}
	return d
}

func dumpMatch(m discovery.Match) matches {
	out := matches{}
	put := func(key string, n int, value any) {
		if n > 0 {
			out[key] = value
		}
	}
	put("namespaces", len(m.Namespaces), dumpStrings(m.Namespaces))
	put("notNamespaces", len(m.NotNamespaces), dumpStrings(m.NotNamespaces))
	put("principals", len(m.Principals), dumpStrings(m.Principals))
	put("notPrincipals", len(m.NotPrincipals), dumpStrings(m.NotPrincipals))
	put("sourceIps", len(m.SourceIPs), m.SourceIPs)
	put("notSourceIps", len(m.NotSourceIPs), m.NotSourceIPs)
	put("destinationIps", len(m.DestinationIPs), m.DestinationIPs)
	put("notDestinationIps", len(m.NotDestinationIPs), m.NotDestinationIPs)
	put("destinationPorts", len(m.DestinationPorts), m.DestinationPorts)
	put("notDestinationPorts", len(m.NotDestinationPorts), m.NotDestinationPorts)
	put("serviceAccounts", len(m.ServiceAccounts), dumpAccounts(m.ServiceAccounts))
	put("notServiceAccounts", len(m.NotServiceAccounts), dumpAccounts(m.NotServiceAccounts))
	return out
}

func dumpStrings(list []discovery.StringMatch) []map[string]any {
	var out []map[string]any
	for _, m := range list {
		if m.Kind == discovery.MatchPresence {
			out = append(out, map[string]any{"Presence": []string{}})
			continue
		}
		out = append(out, map[string]any{nameOf(int32(m.Kind), "Exact", "Prefix", "Suffix"): m.Value})
	}
	return out
}

func dumpAccounts(list []discovery.ServiceAccount) []string {
	var out []string
	for _, a := range list {
		out = append(out, a.Namespace+"/"+a.Name)
	}
	return out
}
