// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	securityv1 "istio.io/api/security/v1beta1"
)

func (c checker) peerAuthentication(p *PeerAuthentication) error {
	ports := p.Spec.GetPortLevelMtls()
	if len(ports) > 0 && len(p.Spec.GetSelector().GetMatchLabels()) == 0 {
		return c.errorf("spec.portLevelMtls", "needs a selector")
	}
	for _, port := range slices.Sorted(maps.Keys(ports)) {
		if port < 1 || port > 65535 {
			return c.errorf("spec.portLevelMtls", "%d is no port", port)
		}
	}
	return nil
}

// authorizationPolicy refuses what this control plane could not have enforced: nobody else would, either.
func (c checker) authorizationPolicy(p *AuthorizationPolicy) error {
	if p.Spec.TargetRef != nil {
		return c.errorf("spec.targetRef", "is enforced by a waypoint, and the embedded control plane knows none; use a selector")
	}
	if len(p.Spec.TargetRefs) > 0 {
		return c.errorf("spec.targetRefs", "is enforced by a waypoint, and the embedded control plane knows none; use a selector")
	}
	switch p.Spec.Action {
	case securityv1.AuthorizationPolicy_CUSTOM:
		return c.errorf("spec.action", "CUSTOM needs an external authorizer, which ztunnel has no means to ask; use ALLOW or DENY")
	case securityv1.AuthorizationPolicy_AUDIT:
		c.warnf("spec.action", "AUDIT has no effect at L4; the policy is ignored")
	}
	if v, ok := p.Annotations[annotationDryRun]; ok {
		if _, err := strconv.ParseBool(v); err != nil {
			return c.errorf("metadata.annotations", "%s: %q is neither true nor false", annotationDryRun, v)
		}
	}
	for i, rule := range p.Spec.Rules {
		if err := c.rule(fmt.Sprintf("spec.rules[%d]", i), p.Spec.Action, rule); err != nil {
			return err
		}
	}
	return nil
}

func (c checker) rule(path string, action securityv1.AuthorizationPolicy_Action, r *securityv1.Rule) error {
	if r == nil {
		return c.errorf(path, "is empty; write \"{}\" for a rule that always matches")
	}
	for i, from := range r.From {
		if err := c.source(fmt.Sprintf("%s.from[%d].source", path, i), from.GetSource()); err != nil {
			return err
		}
	}
	for i, to := range r.To {
		if err := c.operation(fmt.Sprintf("%s.to[%d].operation", path, i), to.GetOperation()); err != nil {
			return err
		}
	}
	for i, when := range r.When {
		if err := c.condition(fmt.Sprintf("%s.when[%d]", path, i), when); err != nil {
			return err
		}
	}
	c.layer7(path, action, r)
	return nil
}

func (c checker) source(path string, s *securityv1.Source) error {
	if s == nil || !slices.ContainsFunc(sourceFields(s), func(f field) bool { return len(f.values) > 0 }) {
		return c.errorf(path, "names no attribute")
	}
	return c.fields(path, sourceFields(s))
}

// operation checks the L4 half of an operation; nothing here reads the other one.
func (c checker) operation(path string, op *securityv1.Operation) error {
	if op == nil || len(op.Ports)+len(op.NotPorts)+len(operationL7(op)) == 0 {
		return c.errorf(path, "names no attribute")
	}
	return c.fields(path, []field{{"ports", op.Ports, checkPort}, {"notPorts", op.NotPorts, checkPort}})
}

func (c checker) fields(path string, fields []field) error {
	for _, f := range fields {
		for i, v := range f.values {
			if err := f.check(v); err != nil {
				return c.errorf(fmt.Sprintf("%s.%s[%d]", path, f.name, i), "%v", err)
			}
		}
	}
	return nil
}

func (c checker) condition(path string, w *securityv1.Condition) error {
	if w.GetKey() == "" {
		return c.errorf(path+".key", "is missing")
	}
	if len(w.Values)+len(w.NotValues) == 0 {
		return c.errorf(path, "needs values or notValues")
	}
	check, l4 := conditionChecks[w.Key]
	if !l4 {
		return nil
	}
	for _, v := range append(slices.Clone(w.Values), w.NotValues...) {
		if err := check(v); err != nil {
			return c.errorf(path, "%s: %v", w.Key, err)
		}
	}
	return nil
}

// layer7 warns of what istiod, too, leaves out of the policies that it sends to a ztunnel.
func (c checker) layer7(path string, action securityv1.AuthorizationPolicy_Action, r *securityv1.Rule) {
	l7 := ruleL7(r)
	if len(l7) == 0 {
		return
	}
	names := strings.Join(l7, ", ")
	if action == securityv1.AuthorizationPolicy_ALLOW {
		c.warnf(path, "%s: only a waypoint sees these; the whole rule is left out, so it allows nothing", names)
		return
	}
	c.warnf(path, "%s: only a waypoint sees these; they are left out, so what remains of the rule matches more than is written, and nothing at all where no L4 attribute stands beside them", names)
}

// field is one list of a Source with how its values are checked.
type field struct {
	name   string
	values []string
	check  func(string) error
}

func sourceFields(s *securityv1.Source) []field {
	unchecked := func(string) error { return nil }
	return []field{
		{"principals", s.Principals, checkPrincipal},
		{"notPrincipals", s.NotPrincipals, checkPrincipal},
		{"namespaces", s.Namespaces, checkPattern},
		{"notNamespaces", s.NotNamespaces, checkPattern},
		{"serviceAccounts", s.ServiceAccounts, checkServiceAccount},
		{"notServiceAccounts", s.NotServiceAccounts, checkServiceAccount},
		{"ipBlocks", s.IpBlocks, checkIPBlock},
		{"notIpBlocks", s.NotIpBlocks, checkIPBlock},
		{"requestPrincipals", s.RequestPrincipals, unchecked},
		{"notRequestPrincipals", s.NotRequestPrincipals, unchecked},
		{"remoteIpBlocks", s.RemoteIpBlocks, unchecked},
		{"notRemoteIpBlocks", s.NotRemoteIpBlocks, unchecked},
	}
}

// conditionChecks are the keys of conditions that are decided at L4.
var conditionChecks = map[string]func(string) error{
	"source.ip":        checkIPBlock,
	"source.namespace": checkPattern,
	"source.principal": checkPrincipal,
	"destination.ip":   checkIPBlock,
	"destination.port": checkPort,
}

// checkPrincipal refuses the one spelling that looks right and never matches.
func checkPrincipal(v string) error {
	if strings.HasPrefix(v, "spiffe://") {
		return fmt.Errorf("%q: principals are written without \"spiffe://\"", v)
	}
	return checkPattern(v)
}

// checkPattern: a "*" is a wildcard at the start or at the end, once, and nothing anywhere else.
func checkPattern(v string) error {
	switch {
	case v == "":
		return fmt.Errorf("is empty")
	case strings.Count(v, "*") > 1:
		return fmt.Errorf("%q: \"*\" may stand only once", v)
	case strings.Contains(strings.TrimSuffix(strings.TrimPrefix(v, "*"), "*"), "*"):
		return fmt.Errorf("%q: \"*\" may stand only at the start or the end", v)
	}
	return nil
}

func checkServiceAccount(v string) error {
	ns, sa, slash := strings.Cut(v, "/")
	if v == "" || strings.Contains(v, "*") || strings.Contains(sa, "/") || slash && (ns == "" || sa == "") {
		return fmt.Errorf("%q is neither a service account nor namespace/account", v)
	}
	return nil
}

func checkIPBlock(v string) error {
	_, err := parseIPBlock(v)
	return err
}

func parseIPBlock(v string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(v); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(v)
	if err != nil || p.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%q is neither an IP address nor a CIDR", v)
	}
	return p, nil
}

func checkPort(v string) error {
	if n, err := strconv.ParseUint(v, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("%q is no port", v)
	}
	return nil
}
