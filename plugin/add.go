// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

// add enrols the pod if the agent says so, and returns prevResult. When it fails nothing of it is left behind.
func (p *plugin) add(args *skel.CmdArgs) error {
	r, err := p.parse(args)
	if err != nil {
		return err
	}
	var result bytes.Buffer // made first: a result that cannot be told must not leave an enrolled pod
	if err := r.prev.PrintTo(&result); err != nil {
		return types.NewError(types.ErrInvalidNetworkConfig, "sluice-cni: prevResult", err.Error())
	}
	ctx, cancel := context.WithTimeout(p.ctx, addTimeout)
	defer cancel()
	if err := p.admit(ctx, r, result.Bytes()); err != nil {
		return types.NewError(codeOf(err, codeDatapath), fmt.Sprintf("sluice-cni: enrol pod %s: %s", r.id, oneLine(err)), wayOut(err))
	}
	return nil
}

// admit writes the result, as the last thing that can fail.
func (p *plugin) admit(ctx context.Context, r *request, result []byte) error {
	decision, err := r.decide(ctx, false)
	if err != nil {
		return err
	}
	if !decision.Enrolled {
		r.log.Debug("pod passes", "reason", decision.Reason)
		return p.succeed(result)
	}
	e := &enrolment{request: r, decision: decision}
	err = e.enrol(ctx)
	if err == nil {
		err = p.succeed(result)
	}
	if err != nil {
		e.undo()
		return err
	}
	r.log.Info("pod enrolled", "reason", decision.Reason)
	return nil
}

// enrolment is one pod on its way into the mesh, and what to undo if it does not get there.
type enrolment struct {
	*request
	decision *nodeapi.Decision

	again    bool // this very sandbox was enrolled before, and stays so
	attached bool // by us
}

func (e *enrolment) enrol(ctx context.Context) error {
	node, err := bpf.OpenNode(e.config.PinRoot)
	if err != nil {
		return err
	}
	defer func() { _ = node.Close() }()
	before, again := e.before(node)
	e.again = again
	if e.unresolved != nil {
		return e.unresolved
	}
	more := again && bringsMore(e.pod, before)
	if err := e.attach(node, before); err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	if more {
		return nil // served already, by the addresses that Kubernetes knows it by
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if _, err := ask(ctx, e.config, addTimeout, &nodeapi.Request{Verb: nodeapi.VerbServe, Pod: e.pod}); err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

// bringsMore tells whether this ADD is for a second network of an enrolled sandbox (Multus), rather than for the same
// one again.
func bringsMore(pod *nodeapi.Pod, before bpf.PodInfo) bool {
	return slices.ContainsFunc(pod.Interfaces, func(i nodeapi.Interface) bool { return !slices.Contains(before.Interfaces, i.Name) })
}

// attach puts the programs in place. On error it leaves none, unless the same sandbox had them before. What was
// captured before stays so.
func (e *enrolment) attach(node *bpf.Node, before bpf.PodInfo) error {
	if err := e.addLinks(before.Interfaces); err != nil {
		return err
	}
	network := e.pod.Network
	if e.again {
		network = before.Network
	}
	err := attach(node, bpf.PodInfo{
		ID:            e.decision.PinID,
		UID:           e.pod.UID,
		Namespace:     e.pod.Namespace,
		Name:          e.pod.Name,
		ContainerID:   e.pod.ContainerID,
		Network:       network,
		NetnsPath:     e.pod.Netns,
		Interfaces:    names(e.pod.Interfaces),
		HostIfindexes: hostEnds(e.pod.Interfaces),
		CaptureAll:    e.decision.CaptureAll,
		CaptureDNS:    e.decision.CaptureDNS,
		BypassInbound: e.decision.BypassInbound,
		Exclude:       bpf.Exclusions{CIDRs: e.decision.ExcludeCIDRs, Ports: e.decision.ExcludePorts},
		Addresses:     addresses(before.Addresses, e.decision.Interfaces, e.pod.Interfaces),
	})
	e.attached = err == nil && !e.again
	return err
}

// addLinks adds what other ADDs of this sandbox brought: what they had captured, and what they told the agent while the
// pod was not enrolled.
//
// Nobody may have been told, if the agent was away then. So the first time every link with an address is captured. It is
// the runtime's or another plugin's: no process of the pod has run that could have made one. Later the pod's own tunnels
// and bridges are left alone.
func (e *enrolment) addLinks(before []string) error {
	return addLinks(e.pod, append(names(e.decision.Interfaces), before...), !e.again)
}

// before is what this very sandbox has already. An older one of the same pod, whose DEL is late or never came, does
// not count: attaching replaces it.
func (e *enrolment) before(node *bpf.Node) (info bpf.PodInfo, ok bool) {
	pod, err := node.Pod(e.decision.PinID)
	if err != nil {
		return bpf.PodInfo{}, false
	}
	defer func() { _ = pod.Close() }()
	if pod.Info().ContainerID != e.pod.ContainerID {
		return bpf.PodInfo{}, false
	}
	return pod.Info(), true
}

// undo leaves the node as enrol found it. What fails here is logged: the error that matters is the one that led here,
// and the DEL that the runtime sends after a failed ADD tries once more.
func (e *enrolment) undo() {
	if e.again {
		return
	}
	// Whatever it answered, the agent may hold something. ADD's own context may be what ended.
	if err := release(context.Background(), e.config, e.pod); err != nil {
		e.log.Warn("undo: release", "err", err)
	}
	if !e.attached {
		return
	}
	pins, err := openPins(e.config, e.pod.ContainerID, e.log)
	defer func() { _ = pins.Close() }()
	if err := errors.Join(err, pins.Detach()); err != nil {
		e.log.Warn("undo: detach", "err", err)
	}
}
