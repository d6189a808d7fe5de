// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sluice-mesh/sluice/installer/controlplane"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

// decide says whether the pod is enrolled, and remembers it either way: its label may change while it runs. A dry run
// remembers nothing: CHECK asks about pods whose ADD is long past.
func (e *Enroller) decide(ctx context.Context, sandbox nodeapi.Pod, dryRun bool) (*nodeapi.Decision, *nodeapi.Error) {
	if sandbox.UID == "" {
		sandbox.UID = sandbox.ContainerID
	}
	defer e.workloads.lock(sandbox.Namespace + "/" + sandbox.Name)()
	if err := e.await(ctx, sandbox); err != nil {
		e.refused(sandbox, err)
		return nil, nodeapi.Errorf(nodeapi.CodeTryAgain, "decide: %w", err)
	}
	snapshot := e.cfg.Catalog.Snapshot()
	enrolled, reason := snapshot.Enrolled(sandbox.Namespace, sandbox.Name)
	at, err := namespaceAt(sandbox.Netns)
	if err != nil {
		if enrolled {
			err = fmt.Errorf("%w (the agent must see the runtime's namespace folder)", err)
			e.refused(sandbox, err)
			return nil, nodeapi.Errorf(nodeapi.CodeInternal, "decide: %w", err)
		}
		return &nodeapi.Decision{Reason: reason}, nil
	}
	var settings Settings
	if enrolled {
		if settings, err = e.admissible(snapshot, sandbox, at); err != nil {
			e.refused(sandbox, err)
			return nil, nodeapi.Errorf(nodeapi.CodeBadRequest, "decide: pod %s/%s belongs into the mesh (%s): %w", sandbox.Namespace, sandbox.Name, reason, err)
		}
	}
	d := &nodeapi.Decision{Enrolled: enrolled, Reason: reason}
	if dryRun {
		d.PinID = pinID(sandbox.ContainerID)
		settings.tell(d)
		return d, nil
	}
	p, err := e.meet(sandbox, at, enrolled)
	if err != nil {
		e.refused(sandbox, err)
		return nil, nodeapi.Errorf(nodeapi.CodeInternal, "decide: %w", err)
	}
	e.podLog(p).Info("pod decided", "enrolled", enrolled, "reason", reason, "netns", sandbox.Netns)
	if enrolled {
		e.setSettings(p, settings)
		d.PinID, d.Interfaces = pinID(p.id()), e.interfacesOf(p)
		settings.tell(d)
	}
	return d, nil
}

// errNoAddress is why a pod that belongs into the mesh cannot be in it.
var errNoAddress = errors.New("the pod has no address, so nobody could connect to it: have its network give it one, or label it istio.io/dataplane-mode=none")

// admissible says how to capture a pod that belongs into the mesh, or why it must not start. One that is in the mesh
// already, and gets a second network or is checked, keeps the settings that it has.
func (e *Enroller) admissible(s *controlplane.Snapshot, sandbox nodeapi.Pod, at namespace) (Settings, error) {
	old := e.get(sandbox.ContainerID)
	if old != nil && old.netns == at && e.phaseOf(old) == served {
		return e.settingsInForce(old), nil
	}
	settings, err := settingsOf(e.cfg.Settings, annotationsOf(s, sandbox))
	hasAddress := len(sandbox.Addresses()) > 0 || old != nil && old.netns == at && len(old.sandbox.Addresses()) > 0
	if !hasAddress {
		err = errors.Join(err, errNoAddress)
	}
	return settings, err
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
		if old.netns == at {
			e.mu.Lock()
			p.lastAccount = old.lastAccount
			e.mu.Unlock()
		}
		p.interfaces = all
		// An ADD that died half-way may have attached what is not wanted any more.
		detach := old.netns != at || !enrolled && e.phaseOf(old) != known
		if err := e.forget(context.Background(), old, detach); err != nil {
			return nil, err
		}
	}
	if enrolled {
		p.phase = admitted
	}
	if err := e.saveRecord(p); err != nil {
		return nil, err
	}
	fault("recorded")
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

func (e *Enroller) settingsInForce(p *pod) Settings {
	e.mu.Lock()
	defer e.mu.Unlock()
	return p.settings
}

func (e *Enroller) setSettings(p *pod, s Settings) {
	e.mu.Lock()
	defer e.mu.Unlock()
	p.settings = s
}

func newPod(sandbox nodeapi.Pod, at namespace) *pod {
	return &pod{
		sandbox: sandbox, netns: at, ended: make(chan struct{}),
		phase: known, since: time.Now(), interfaces: sandbox.Interfaces,
	}
}
