// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"net/netip"
	"strings"
)

// PolicyScope is which workloads a policy is for.
type PolicyScope uint8

const (
	// PolicyGlobal policies apply to all workloads.
	PolicyGlobal PolicyScope = iota
	// PolicyNamespace policies apply to the workloads of their namespace.
	PolicyNamespace
	// PolicyWorkload policies apply to the workloads that name them.
	PolicyWorkload
)

// Action is what a policy does with the connections it matches.
type Action uint8

const (
	// Allow lets them be. While a workload has any such policy, what none of them matches is refused.
	Allow Action = iota
	// Deny refuses them, whatever else allows them.
	Deny
)

// Policy decides about connections to workloads. Ambient section 6.3: it matches if any of its groups does, so one
// without groups never matches.
type Policy struct {
	Namespace string
	Name      string
	Scope     PolicyScope
	Action    Action
	Groups    []Group
	// DryRun policies are evaluated for the log only.
	DryRun bool
}

// Key returns "namespace/name", the policy's name on the wire and in logs.
func (p *Policy) Key() string { return p.Namespace + "/" + p.Name }

// Group matches if all its clauses do; one without clauses matches everything.
type Group struct {
	Clauses []Clause
}

// Clause matches if any of its matches does; one without matches matches everything.
type Clause struct {
	Matches []Match
}

// Match holds if each kind of field that is given holds: a positive list if any element does, a negative list if none
// does. With every list empty it does not hold.
type Match struct {
	Namespaces, NotNamespaces             []StringMatch
	Principals, NotPrincipals             []StringMatch
	SourceIPs, NotSourceIPs               []netip.Prefix
	DestinationIPs, NotDestinationIPs     []netip.Prefix
	DestinationPorts, NotDestinationPorts []uint16
	ServiceAccounts, NotServiceAccounts   []ServiceAccount
}

// ServiceAccount names an account without its trust domain.
type ServiceAccount struct {
	Namespace string
	Name      string
}

// MatchKind is how a StringMatch compares.
type MatchKind uint8

// The kinds of StringMatch.
const (
	MatchExact MatchKind = iota
	MatchPrefix
	MatchSuffix
	MatchPresence // any value but the empty one
)

// StringMatch compares a string, case and all.
type StringMatch struct {
	Kind  MatchKind
	Value string // unused for MatchPresence
}

// Matches tells whether s is what m asks for.
func (m StringMatch) Matches(s string) bool {
	switch m.Kind {
	case MatchExact:
		return s == m.Value
	case MatchPrefix:
		return strings.HasPrefix(s, m.Value)
	case MatchSuffix:
		return strings.HasSuffix(s, m.Value)
	case MatchPresence:
		return s != ""
	}
	return false
}
