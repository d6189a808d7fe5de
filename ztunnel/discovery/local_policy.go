// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

type localPolicy struct {
	Name      string           `json:"name"`
	Namespace string           `json:"namespace"`
	Scope     string           `json:"scope"`
	Action    string           `json:"action"`
	DryRun    bool             `json:"dryRun"`
	Rules     [][][]localMatch `json:"rules"`
}

type localMatch struct {
	Namespaces          []localString `json:"namespaces"`
	NotNamespaces       []localString `json:"notNamespaces"`
	Principals          []localString `json:"principals"`
	NotPrincipals       []localString `json:"notPrincipals"`
	ServiceAccounts     []string      `json:"serviceAccounts"`
	NotServiceAccounts  []string      `json:"notServiceAccounts"`
	SourceIPs           []string      `json:"sourceIps"`
	NotSourceIPs        []string      `json:"notSourceIps"`
	DestinationIPs      []string      `json:"destinationIps"`
	NotDestinationIPs   []string      `json:"notDestinationIps"`
	DestinationPorts    []uint16      `json:"destinationPorts"`
	NotDestinationPorts []uint16      `json:"notDestinationPorts"`
}

// localString has one key: Exact, Prefix or Suffix with the value, or Presence with nothing of interest.
type localString map[string]any

func (l localPolicy) parse() (*Policy, error) {
	if l.Name == "" || l.Scope == "" || l.Action == "" {
		return nil, errors.New("name, scope and action must be there")
	}
	var errs []error
	p := &Policy{
		Name: l.Name, Namespace: l.Namespace, DryRun: l.DryRun,
		Scope:  PolicyScope(choice(&errs, "scope", l.Scope, 0, "Global", "Namespace", "WorkloadSelector")),
		Action: Action(choice(&errs, "action", l.Action, 0, "Allow", "Deny")),
	}
	for _, clauses := range l.Rules {
		var g Group
		for _, matches := range clauses {
			var c Clause
			collect(&c.Matches, &errs, "matches", matches, localMatch.parse)
			g.Clauses = append(g.Clauses, c)
		}
		p.Groups = append(p.Groups, g)
	}
	return p, errors.Join(errs...)
}

func (l localMatch) parse() (Match, error) {
	m := Match{DestinationPorts: l.DestinationPorts, NotDestinationPorts: l.NotDestinationPorts}
	err := errors.Join(
		parseList(&m.Namespaces, "namespaces", l.Namespaces, localString.parse),
		parseList(&m.NotNamespaces, "notNamespaces", l.NotNamespaces, localString.parse),
		parseList(&m.Principals, "principals", l.Principals, localString.parse),
		parseList(&m.NotPrincipals, "notPrincipals", l.NotPrincipals, localString.parse),
		parseList(&m.ServiceAccounts, "serviceAccounts", l.ServiceAccounts, localAccount),
		parseList(&m.NotServiceAccounts, "notServiceAccounts", l.NotServiceAccounts, localAccount),
		parseList(&m.SourceIPs, "sourceIps", l.SourceIPs, localRange),
		parseList(&m.NotSourceIPs, "notSourceIps", l.NotSourceIPs, localRange),
		parseList(&m.DestinationIPs, "destinationIps", l.DestinationIPs, localRange),
		parseList(&m.NotDestinationIPs, "notDestinationIps", l.NotDestinationIPs, localRange),
	)
	return m, err
}

func (l localString) parse() (StringMatch, error) {
	kinds := map[string]MatchKind{"Exact": MatchExact, "Prefix": MatchPrefix, "Suffix": MatchSuffix, "Presence": MatchPresence}
	if len(l) == 1 {
		for name, value := range l {
			kind, ok := kinds[name]
			if ok && kind == MatchPresence {
				return StringMatch{Kind: kind}, nil
			}
			if text, isText := value.(string); ok && isText {
				return StringMatch{kind, text}, nil
			}
		}
	}
	return StringMatch{}, fmt.Errorf("%v: want one of Exact, Prefix, Suffix with a text, or Presence", map[string]any(l))
}

func localAccount(text string) (ServiceAccount, error) {
	namespace, name, ok := strings.Cut(text, "/")
	if !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
		return ServiceAccount{}, fmt.Errorf("%q is not namespace/name", text)
	}
	return ServiceAccount{namespace, name}, nil
}

func localRange(text string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		return netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()), nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return p, err
	}
	return parsePrefix(p.Addr().AsSlice(), uint32(p.Bits()))
}
