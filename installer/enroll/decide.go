// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"context"
	"slices"
	"time"

	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

// decide says whether the pod is enrolled, and remembers it either way: its label may change while it runs. A dry run
// remembers nothing: CHECK asks about pods whose ADD is long past.
func (e *Enroller) decide(sandbox nodeapi.Pod, dryRun bool) (*nodeapi.Decision, *nodeapi.Error) {
	if sandbox.UID == "" {
		sandbox.UID = sandbox.ContainerID
	}
	defer e.workloads.lock(sandbox.Namespace + "/" + sandbox.Name)()
	enrolled, reason := e.cfg.Catalog.Snapshot().Enrolled(sandbox.Namespace, sandbox.Name)
	if enrolled && len(sandbox.Addresses()) == 0 {
		enrolled, reason = false, "pod has no address"
	}
	at, err := namespaceAt(sandbox.Netns)
	if err != nil {
		if enrolled {
			return nil, nodeapi.Errorf(nodeapi.CodeInternal, "decide: %w (the agent must see the runtime's namespace folder)", err)
		}
		return &nodeapi.Decision{Reason: reason}, nil
	}
	if dryRun {
		return &nodeapi.Decision{Enrolled: enrolled, Reason: reason, PinID: pinID(sandbox.ContainerID), CaptureAll: e.cfg.CaptureAll}, nil
	}
	p, err := e.meet(sandbox, at, enrolled)
	if err != nil {
		return nil, nodeapi.Errorf(nodeapi.CodeInternal, "decide: %w", err)
	}
	e.podLog(p).Info("pod decided", "enrolled", enrolled, "reason", reason, "netns", sandbox.Netns)
	d := &nodeapi.Decision{Enrolled: enrolled, Reason: reason}
	if enrolled {
		d.PinID, d.CaptureAll, d.Interfaces = pinID(p.id()), e.cfg.CaptureAll, e.interfacesOf(p)
	}
	return d, nil
}

// meet records a sandbox. One with the same container id but another namespace is a stranger whose DEL never came.
//
// ADD may come again, or for a second network (Multus): interfaces add up, and the pod stays the first network's.
func (e *Enroller) meet(sandbox nodeapi.Pod, at namespace, enrolled bool) (*pod, error) {
	p := newPod(sandbox, at)
	if old := e.get(sandbox.ContainerID); old != nil {
		all := slices.Clone(sandbox.Interfaces)
		if old.netns == at {
			all = e.interfacesWith(old, all)
		}
		if old.netns == at && e.phaseOf(old) == served {
			e.setInterfaces(old, all)
			return old, e.saveRecord(old)
		}
		if old.netns == at && old.sandbox.Network != sandbox.Network {
			p = newPod(old.sandbox, at)
		}
		p.interfaces = all
		if err := e.forget(context.Background(), old, old.netns != at); err != nil {
			return nil, err
		}
	}
	if enrolled {
		p.phase = admitted
	}
	if err := e.saveRecord(p); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.pods[p.id()] = p
	return p, nil
}

// interfacesWith is what is known to be attached to, with more in place of or behind it.
func (e *Enroller) interfacesWith(p *pod, more []nodeapi.Interface) []nodeapi.Interface {
	all := e.interfacesOf(p)
	for _, i := range more {
		same := func(o nodeapi.Interface) bool { return o.Name == i.Name }
		if n := slices.IndexFunc(all, same); n >= 0 {
			all[n] = i
		} else {
			all = append(all, i)
		}
	}
	return all
}

func (e *Enroller) interfacesOf(p *pod) []nodeapi.Interface {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(p.interfaces)
}

func (e *Enroller) setInterfaces(p *pod, all []nodeapi.Interface) {
	e.mu.Lock()
	defer e.mu.Unlock()
	p.interfaces = all
}

func newPod(sandbox nodeapi.Pod, at namespace) *pod {
	return &pod{
		sandbox: sandbox, netns: at, ended: make(chan struct{}),
		phase: known, since: time.Now(), interfaces: sandbox.Interfaces,
	}
}
