// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/types/known/emptypb"
	securityv1 "istio.io/api/security/v1beta1"
	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-mesh/sluice/internal/securityapi"
)

type mtlsMode = securityv1.PeerAuthentication_MutualTLS_Mode

const (
	modeUnset  = securityv1.PeerAuthentication_MutualTLS_UNSET
	modeStrict = securityv1.PeerAuthentication_MutualTLS_STRICT
)

// peerAuths are the PeerAuthentications of a mesh, ordered by the rule that the oldest wins.
//
// There is no word for "mTLS only" in the xDS of a ztunnel. A workload is strict by being listed under a policy that
// denies whoever has no identity: one static policy for all of them, or a dedicated one where ports differ.
type peerAuths struct {
	root string
	// meshWide and namespaced are modes; unset where nothing is said. Namespaces not listed say nothing.
	meshWide   mtlsMode
	namespaced map[string]mtlsMode
	// selecting are those with a selector, outside the root namespace.
	selecting []*PeerAuthentication
	// ignored says of which no notice is taken, and why.
	ignored []*FileError
	any     bool
}

func newPeerAuths(root string, oldestFirst []*PeerAuthentication) *peerAuths {
	a := &peerAuths{root: root, namespaced: map[string]mtlsMode{}, any: len(oldestFirst) > 0}
	settled := map[string]*PeerAuthentication{}
	for _, p := range oldestFirst {
		switch before := settled[p.Namespace]; {
		case len(p.Spec.GetSelector().GetMatchLabels()) > 0 && p.Namespace == root:
			a.ignore(p, "a selector has no effect in the root namespace %q", root)
		case len(p.Spec.GetSelector().GetMatchLabels()) > 0:
			a.selecting = append(a.selecting, p)
		case before != nil:
			a.ignore(p, "%q at %s is older, or first by name, and holds for the namespace", before.Name, before.Origin)
		default:
			settled[p.Namespace] = p
			a.namespaced[p.Namespace] = p.Spec.GetMtls().GetMode()
		}
	}
	// The root namespace's own policy is the mesh's.
	a.meshWide = a.namespaced[root]
	return a
}

func (a *peerAuths) ignore(p *PeerAuthentication, format string, args ...any) {
	err := fmt.Errorf("PeerAuthentication %s/%s is ignored: "+format, append([]any{p.Namespace, p.Name}, args...)...)
	a.ignored = append(a.ignored, &FileError{Origin: p.Origin, Err: err})
}

// inherited is the mode of a namespace's pods that no selector picks.
func (a *peerAuths) inherited(namespace string) mtlsMode {
	if m := a.namespaced[namespace]; m != modeUnset {
		return m
	}
	return a.meshWide
}

// effective is a selecting policy with inheritance resolved.
type effective struct {
	strict bool
	// exceptions are the ports that are not as strict says, in order.
	exceptions []uint32
}

func (a *peerAuths) effective(p *PeerAuthentication) effective {
	mode := p.Spec.GetMtls().GetMode()
	if mode == modeUnset {
		mode = a.inherited(p.Namespace)
	}
	e := effective{strict: mode == modeStrict}
	for _, port := range slices.Sorted(maps.Keys(p.Spec.PortLevelMtls)) {
		m := p.Spec.PortLevelMtls[port].GetMode()
		if m != modeUnset && (m == modeStrict) != e.strict {
			e.exceptions = append(e.exceptions, port)
		}
	}
	return e
}

// policiesFor are the keys of the policies that make a pod as strict as it should be.
func (a *peerAuths) policiesFor(p *corev1.Pod) []string {
	e := effective{strict: a.inherited(p.Namespace) == modeStrict}
	if chosen := a.chosen(p); chosen != nil {
		e = a.effective(chosen)
		if len(e.exceptions) > 0 {
			return []string{chosen.Namespace + "/" + convertedPrefix + chosen.Name}
		}
	}
	if e.strict {
		return []string{a.root + "/" + staticStrictName}
	}
	return nil
}

// chosen is the oldest policy that selects the pod.
func (a *peerAuths) chosen(p *corev1.Pod) *PeerAuthentication {
	for _, pa := range a.selecting {
		if pa.Namespace == p.Namespace && selects(pa.Spec.GetSelector().GetMatchLabels(), p.Labels) {
			return pa
		}
	}
	return nil
}

// policies are all that policiesFor may name.
func (a *peerAuths) policies() []*securityapi.Authorization {
	var out []*securityapi.Authorization
	if a.any {
		out = append(out, deny(a.root, staticStrictName, allOf(noIdentity())))
	}
	for _, p := range a.selecting {
		if e := a.effective(p); len(e.exceptions) > 0 {
			out = append(out, deny(p.Namespace, convertedPrefix+p.Name, e.groups()...))
		}
	}
	return out
}

// groups say: no identity, and either none of the permissive ports, or one of the strict ones.
func (e effective) groups() []*securityapi.Group {
	if e.strict {
		clauses := []*securityapi.Match{noIdentity()}
		for _, port := range e.exceptions {
			clauses = append(clauses, &securityapi.Match{NotDestinationPorts: []uint32{port}})
		}
		return []*securityapi.Group{allOf(clauses...)}
	}
	var groups []*securityapi.Group
	for _, port := range e.exceptions {
		groups = append(groups, allOf(noIdentity(), &securityapi.Match{DestinationPorts: []uint32{port}}))
	}
	return groups
}

func deny(namespace, name string, groups ...*securityapi.Group) *securityapi.Authorization {
	return &securityapi.Authorization{
		Namespace: namespace, Name: name,
		Scope: securityapi.Scope_WORKLOAD_SELECTOR, Action: securityapi.Action_DENY,
		Groups: groups,
	}
}

// noIdentity matches exactly the connections without a peer identity.
func noIdentity() *securityapi.Match {
	presence := &securityapi.StringMatch{MatchType: &securityapi.StringMatch_Presence{Presence: &emptypb.Empty{}}}
	return &securityapi.Match{NotPrincipals: []*securityapi.StringMatch{presence}}
}

// allOf is a group of clauses that each consist of one match.
func allOf(matches ...*securityapi.Match) *securityapi.Group {
	g := &securityapi.Group{}
	for _, m := range matches {
		g.Rules = append(g.Rules, &securityapi.Rules{Matches: []*securityapi.Match{m}})
	}
	return g
}
