// SPDX-License-Identifier: Apache-2.0

// Package policy decides whether a connection may be: pure functions over the policies of discovery.
package policy

import (
	"net/netip"
	"slices"

	"github.com/sluice-mesh/sluice/ztunnel/discovery"
)

// Identity is who a connection comes from, as its certificate says. An identity.Identity converts to it. The zero value
// is nobody: plain TCP.
type Identity struct {
	TrustDomain    string
	Namespace      string
	ServiceAccount string
}

// Input is what a decision is made from.
type Input struct {
	Source   Identity
	SourceIP netip.Addr // the TCP peer's, whatever headers say
	// Dest is where the connection is delivered: the pod's address and the target port, never the VIP or 15008.
	Dest netip.AddrPort
}

// Decision is the answer, and why.
type Decision struct {
	Allow bool
	// Policy is the "namespace/name" that decided; empty if none did by itself.
	Policy string
	// Reason is for the access log; empty if allowed.
	Reason string
	// DryRun are the policies that matched but are not enforced, for the log.
	DryRun []string
}

// Decide applies the policies that are for the connection's destination. Ambient section 6.2: a matching DENY refuses;
// else, if there is any ALLOW, one must match; else the connection may be.
func Decide(in Input, policies []*discovery.Policy) Decision {
	c := newConnection(in)
	var d Decision
	var allowed *discovery.Policy
	restricted := false
	for _, p := range policies {
		switch {
		case p.DryRun:
			if c.matches(p) {
				d.DryRun = append(d.DryRun, p.Key())
			}
		case p.Action == discovery.Allow:
			restricted = true
			if allowed == nil && c.matches(p) {
				allowed = p
			}
		case d.Policy == "" && c.matches(p):
			d.Policy = p.Key()
			d.Reason = "explicitly denied by: " + d.Policy
		}
	}
	switch {
	case d.Policy != "":
	case !restricted:
		d.Allow = true
	case allowed != nil:
		d.Allow, d.Policy = true, allowed.Key()
	default:
		d.Reason = "allow policies exist, but none allowed"
	}
	return d
}

// connection is an Input in the shape that matches compare with.
type connection struct {
	Input
	principal string // without spiffe://; empty for nobody
}

func newConnection(in Input) *connection {
	c := &connection{Input: in}
	// Prefixes contain no address with a zone, which link-local ones come with: a DENY must match them all the same.
	c.SourceIP = in.SourceIP.Unmap().WithZone("")
	c.Dest = netip.AddrPortFrom(in.Dest.Addr().Unmap().WithZone(""), in.Dest.Port())
	if id := in.Source; id != (Identity{}) {
		c.principal = id.TrustDomain + "/ns/" + id.Namespace + "/sa/" + id.ServiceAccount
	}
	return c
}

// matches: groups are alternatives, and without any nothing matches.
func (c *connection) matches(p *discovery.Policy) bool {
	return slices.ContainsFunc(p.Groups, c.inGroup)
}

// inGroup: every clause must hold, and without any everything matches.
func (c *connection) inGroup(g discovery.Group) bool {
	return !slices.ContainsFunc(g.Clauses, func(clause discovery.Clause) bool { return !c.inClause(clause) })
}

// inClause: matches are alternatives (the control plane's own comment says otherwise), and without any everything matches.
func (c *connection) inClause(clause discovery.Clause) bool {
	return len(clause.Matches) == 0 || slices.ContainsFunc(clause.Matches, c.inMatch)
}

// inMatch: every kind that is given must hold, and one must be given.
func (c *connection) inMatch(m discovery.Match) bool {
	given := false
	return both(&given, m.Namespaces, m.NotNamespaces, c.isNamespace) &&
		both(&given, m.Principals, m.NotPrincipals, c.isPrincipal) &&
		both(&given, m.ServiceAccounts, m.NotServiceAccounts, c.isServiceAccount) &&
		both(&given, m.SourceIPs, m.NotSourceIPs, c.isFrom) &&
		both(&given, m.DestinationIPs, m.NotDestinationIPs, c.isTo) &&
		both(&given, m.DestinationPorts, m.NotDestinationPorts, c.isToPort) &&
		given
}

// both checks one kind: any of positive unless that is empty, and none of negative.
func both[T any](given *bool, positive, negative []T, is func(T) bool) bool {
	*given = *given || len(positive)+len(negative) > 0
	return (len(positive) == 0 || slices.ContainsFunc(positive, is)) && !slices.ContainsFunc(negative, is)
}

func (c *connection) isNamespace(m discovery.StringMatch) bool {
	return m.Matches(c.Source.Namespace)
}

// isPrincipal: nobody has no principal, which not even presence matches.
func (c *connection) isPrincipal(m discovery.StringMatch) bool {
	return c.principal != "" && m.Matches(c.principal)
}

func (c *connection) isServiceAccount(a discovery.ServiceAccount) bool {
	return c.principal != "" && a == discovery.ServiceAccount{Namespace: c.Source.Namespace, Name: c.Source.ServiceAccount}
}

func (c *connection) isFrom(p netip.Prefix) bool { return p.Contains(c.SourceIP) }
func (c *connection) isTo(p netip.Prefix) bool   { return p.Contains(c.Dest.Addr()) }
func (c *connection) isToPort(port uint16) bool  { return port == c.Dest.Port() }
