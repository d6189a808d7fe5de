// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/sluice-mesh/sluice/installer/controlplane"
)

// Reasons of a policy's events.
const (
	reasonMistake = "PolicyMistake"
	reasonFutile  = "PolicyWithoutEffect"
)

// policyEvents tells the authors of policies what is not carried out as they wrote it.
type policyEvents struct {
	events *events
	leads  func() bool // several replicas see the same; one of them tells it

	mu   sync.Mutex
	refs map[string]*corev1.ObjectReference // by the path of the policy's origin
}

// TellAuthors has each policy that is not carried out as it is written get an event, as long as leads says that it is this
// process, known as identity, which is to tell. Call it before Start.
func (c *Cluster) TellAuthors(client kubernetes.Interface, identity string, leads func() bool) {
	c.authors = &policyEvents{events: newEvents(client, identity), leads: leads, refs: map[string]*corev1.ObjectReference{}}
}

// Look has Run look at once at what is known, and whom to tell of it.
func (c *Cluster) Look() { c.kick() }

func (p *policyEvents) note(object any) {
	if o, ok := object.(*unstructured.Unstructured); ok && p != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.refs[pathOf(o)] = &corev1.ObjectReference{
			APIVersion: o.GetAPIVersion(), Kind: o.GetKind(), Namespace: o.GetNamespace(), Name: o.GetName(), UID: o.GetUID(),
		}
	}
}

func (p *policyEvents) forget(object any) {
	if o, ok := object.(*unstructured.Unstructured); ok && p != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.refs, pathOf(o))
	}
}

// pathOf is what [controlplane.Origin] has for the policy.
func pathOf(o *unstructured.Unstructured) string {
	return o.GetKind() + " " + o.GetNamespace() + "/" + o.GetName()
}

// tell is called by one goroutine.
func (p *policyEvents) tell(s *controlplane.Snapshot) {
	if p == nil || !p.leads() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	amiss := map[types.UID]bool{}
	say := func(all []*controlplane.FileError, reason string) {
		for _, e := range all {
			if ref := p.refs[e.Path]; ref != nil && !amiss[ref.UID] {
				amiss[ref.UID] = true
				p.events.tell(ref, notice{corev1.EventTypeWarning, reason, "Mesh: " + e.Err.Error()})
			}
		}
	}
	say(s.Errors, reasonMistake)
	say(s.Warnings, reasonFutile)
	p.events.forget(amiss)
}

func (p *policyEvents) stop() {
	if p != nil {
		p.events.stop()
	}
}
