// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/installer/listeners"
	"github.com/sluice-mesh/sluice/installer/ztunnels"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

// Handle answers the node API; see nodeapi.Handler.
func (e *Enroller) Handle(ctx context.Context, req *nodeapi.Request, fds []int) (nodeapi.Answer, *nodeapi.Error) {
	var answer nodeapi.Answer
	var refusal *nodeapi.Error
	switch req.Verb {
	case nodeapi.VerbDecide:
		answer.Decision, refusal = e.decide(*req.Pod, req.DryRun)
	case nodeapi.VerbServe:
		refusal = e.serve(ctx, req.Pod)
	case nodeapi.VerbRelease:
		refusal = e.release(ctx, req.Pod.ContainerID)
	case nodeapi.VerbGC:
		refusal = e.gc(ctx, req.Network, req.Valid)
	case nodeapi.VerbListeners:
		return e.listeners(req, fds)
	case nodeapi.VerbStatus:
		b, err := json.Marshal(e.statusPage(req.After))
		if err != nil {
			return answer, nodeapi.Errorf(nodeapi.CodeInternal, "status: %w", err)
		}
		answer.Status = b
	default:
		refusal = nodeapi.Errorf(nodeapi.CodeBadRequest, "verb %q is not for this agent", req.Verb)
	}
	return answer, refusal
}

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
		d.PinID, d.CaptureAll = pinID(p.id()), e.cfg.CaptureAll
	}
	return d, nil
}

// meet records a sandbox. One with the same container id but another namespace is a stranger whose DEL never came.
func (e *Enroller) meet(sandbox nodeapi.Pod, at namespace, enrolled bool) (*pod, error) {
	if old := e.get(sandbox.ContainerID); old != nil {
		if old.netns == at && e.phaseOf(old) == served {
			return old, nil
		}
		if old.netns == at {
			sandbox = withInterfacesOf(sandbox, old.sandbox)
		}
		if err := e.forget(context.Background(), old, old.netns != at); err != nil {
			return nil, err
		}
	}
	p := newPod(sandbox, at)
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

// withInterfacesOf is a sandbox that ADD is called for again, or for a second network (Multus): interfaces add up, and
// the pod stays the first network's.
func withInterfacesOf(sandbox, old nodeapi.Pod) nodeapi.Pod {
	all := slices.Clone(old.Interfaces)
	for _, i := range sandbox.Interfaces {
		same := func(o nodeapi.Interface) bool { return o.Name == i.Name }
		if n := slices.IndexFunc(all, same); n >= 0 {
			all[n] = i
		} else {
			all = append(all, i)
		}
	}
	sandbox.Interfaces, sandbox.Network = all, old.Network
	return sandbox
}

func newPod(sandbox nodeapi.Pod, at namespace) *pod {
	return &pod{
		sandbox: sandbox, netns: at, ended: make(chan struct{}),
		phase: known, since: time.Now(),
	}
}

// serve brings up a pod that the plugin has attached.
func (e *Enroller) serve(ctx context.Context, sandbox *nodeapi.Pod) *nodeapi.Error {
	defer e.workloads.lock(sandbox.Namespace + "/" + sandbox.Name)()
	p := e.get(sandbox.ContainerID)
	if p == nil || p.workload() != sandbox.Namespace+"/"+sandbox.Name {
		return nodeapi.Errorf(nodeapi.CodeNotFound, "serve: no pod %s/%s with container id %s was decided on", sandbox.Namespace, sandbox.Name, sandbox.ContainerID)
	}
	ctx, cancel := e.untilEnded(ctx, p)
	defer cancel()
	switch e.phaseOf(p) {
	case served:
		return nil
	case known:
		return nodeapi.Errorf(nodeapi.CodeBadRequest, "serve: pod %s is not enrolled", p.workload())
	}
	if err := e.bringUp(ctx, p, false); err != nil {
		e.podLog(p).Warn("pod not enrolled", "err", err)
		return refusalOf(fmt.Errorf("serve: %w", err))
	}
	return nil
}

func refusalOf(err error) *nodeapi.Error {
	code := nodeapi.CodeInternal
	if errors.Is(err, ztunnels.ErrNone) || errors.Is(err, ztunnels.ErrRefused) || errors.Is(err, context.DeadlineExceeded) {
		code = nodeapi.CodeTryAgain
	}
	return nodeapi.Errorf(code, "%w", err)
}

// release forgets a sandbox. Its programs are the plugin's to take off, which it does by the pins.
func (e *Enroller) release(ctx context.Context, containerID string) *nodeapi.Error {
	p := e.get(containerID)
	if p == nil {
		return nil
	}
	p.end() // Before the lock: a serve in progress holds it, and need not be waited out.
	defer e.workloads.lock(p.workload())()
	if e.get(containerID) != p {
		return nil
	}
	if err := e.forget(ctx, p, false); err != nil {
		return nodeapi.Errorf(nodeapi.CodeInternal, "release: %w", err)
	}
	e.podLog(p).Info("pod released")
	return nil
}

// gc forgets the pods of the network that are not in the list. Pods of an unknown network stay until their namespace
// ends.
func (e *Enroller) gc(ctx context.Context, network string, valid []nodeapi.Attachment) *nodeapi.Error {
	keep := map[string]bool{}
	for _, a := range valid {
		keep[a.ContainerID] = true
	}
	for _, p := range e.all() {
		if p.sandbox.Network != network || keep[p.id()] {
			continue
		}
		if err := e.release(ctx, p.id()); err != nil {
			return err
		}
	}
	return nil
}

// listeners hands over the pod's sockets. The caller's own, if it offers some, are taken back into custody first: after
// a restart of the agent ztunnel's copies are the only ones.
func (e *Enroller) listeners(req *nodeapi.Request, fds []int) (nodeapi.Answer, *nodeapi.Error) {
	e.mu.Lock()
	p := e.current[req.Pod.UID]
	var in *inside
	if p != nil {
		in = p.inside
	}
	e.mu.Unlock()
	if in == nil {
		return nodeapi.Answer{}, nodeapi.Errorf(nodeapi.CodeNotFound, "listeners: no pod with uid %s is served", req.Pod.UID)
	}
	offered, err := offeredSlots(req.Slots, fds)
	if err != nil {
		return nodeapi.Answer{}, nodeapi.Errorf(nodeapi.CodeBadRequest, "listeners: %w", err)
	}
	slots, own, err := e.handOver(p, in, offered)
	if err != nil {
		e.podLog(p).Warn("listeners not handed over", "err", err)
		return nodeapi.Answer{}, nodeapi.Errorf(nodeapi.CodeInternal, "listeners: %w", err)
	}
	answer := nodeapi.Answer{FDs: own, CloseAfter: true}
	for _, s := range slots {
		answer.Slots = append(answer.Slots, s.String())
	}
	return answer, nil
}

func (e *Enroller) handOver(p *pod, in *inside, offered map[bpf.Slot]int) ([]bpf.Slot, []int, error) {
	attached, err := e.cfg.Node.Pod(pinID(p.id()))
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = attached.Close() }()
	if adopted := in.set.Adopt(attached, offered); len(adopted) > 0 {
		e.podLog(p).Info("listeners adopted from ztunnel", "slots", adopted)
	}
	// Whatever is held by nobody, or by a ztunnel that is not the one asking, is made anew.
	if err := in.set.Open(in.ns, e.tagProxy); err != nil {
		return nil, nil, err
	}
	if err := in.set.Install(attached); err != nil {
		return nil, nil, err
	}
	return in.set.Duplicate()
}

func (e *Enroller) tagProxy(fd int) error { return e.cfg.Node.TagSocket(fd, bpf.TagProxy) }

func offeredSlots(names []string, fds []int) (map[bpf.Slot]int, error) {
	if len(names) != len(fds) {
		return nil, fmt.Errorf("%d slots for %d descriptors", len(names), len(fds))
	}
	offered := make(map[bpf.Slot]int, len(names))
	for i, name := range names {
		for _, s := range listeners.Names() {
			if s.String() == name {
				offered[s] = fds[i]
			}
		}
	}
	return offered, nil
}
