// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

// add enrols the pod if the agent says so, and returns prevResult. When it fails nothing of it is left behind.
func (p *plugin) add(args *skel.CmdArgs) error {
	c, err := strictConfig(args.StdinData)
	if err != nil {
		return err
	}
	prev, err := requirePrevResult(c)
	if err != nil {
		return err
	}
	var result bytes.Buffer // made first: a result that cannot be told must not leave an enrolled pod
	if err := prev.PrintTo(&result); err != nil {
		return types.NewError(types.ErrInvalidNetworkConfig, "sluice-cni: prevResult", err.Error())
	}
	id, err := parseArgs(args.Args)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(p.ctx, addTimeout)
	defer cancel()
	pod := podOf(c, args, id)
	pod.Interfaces = prev.Interfaces(args.IfName)
	log := p.log(c).With("pod", id.String(), "container", args.ContainerID)

	decision, err := decide(ctx, c, id, pod)
	if err != nil {
		return addError(id, err)
	}
	if !decision.Enrolled {
		log.Debug("pod passes", "reason", decision.Reason)
		return p.succeed(result.Bytes())
	}
	e := &enrolment{config: c, pod: pod, pinID: decision.PinID, log: log}
	err = e.enrol(ctx, decision.CaptureAll)
	if err == nil {
		err = p.succeed(result.Bytes())
	}
	if err != nil {
		e.undo()
		return addError(id, err)
	}
	log.Info("pod enrolled", "reason", decision.Reason)
	return nil
}

func addError(id identity, err error) error {
	return types.NewError(codeOf(err, codeDatapath), fmt.Sprintf("sluice-cni: enrol pod %s: %s", id, oneLine(err)), wayOut(err))
}

// enrolment is one pod on its way into the mesh, and what to undo if it does not get there.
type enrolment struct {
	config *config
	pod    *nodeapi.Pod
	pinID  string
	log    *slog.Logger

	attached bool // by us: a sandbox that was enrolled before stays so
	asked    bool // the agent was asked to serve and may hold something, whatever it answered
}

func (e *enrolment) enrol(ctx context.Context, captureAll bool) error {
	node, err := bpf.OpenNode(e.config.PinRoot)
	if err != nil {
		return err
	}
	defer func() { _ = node.Close() }()
	more, err := e.attach(node, captureAll)
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	if more {
		return nil // served already, by the addresses that Kubernetes knows it by
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	e.asked = true
	if _, err := ask(ctx, e.config, addTimeout, &nodeapi.Request{Verb: nodeapi.VerbServe, Pod: e.pod}); err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

// attach puts the programs in place. On error it leaves none, unless the same sandbox had them before.
//
// A sandbox that was enrolled before is asked for again, or by a second network (Multus): more tells that this ADD
// brings interfaces that are new. Those that were captured stay so.
func (e *enrolment) attach(node *bpf.Node, captureAll bool) (more bool, err error) {
	before, again := e.before(node)
	for _, i := range e.pod.Interfaces {
		more = more || again && i.Name != "lo" && !slices.Contains(before.Interfaces, i.Name)
	}
	for _, name := range before.Interfaces {
		if !slices.Contains(names(e.pod.Interfaces), name) {
			e.pod.Interfaces = append(e.pod.Interfaces, nodeapi.Interface{Name: name})
		}
	}
	if err := resolveLinks(e.pod); err != nil {
		return false, err
	}
	network := e.pod.Network
	if again {
		network = before.Network
	}
	err = attach(node, bpf.PodInfo{
		ID:            e.pinID,
		UID:           e.pod.UID,
		Namespace:     e.pod.Namespace,
		Name:          e.pod.Name,
		ContainerID:   e.pod.ContainerID,
		Network:       network,
		NetnsPath:     e.pod.Netns,
		Interfaces:    names(e.pod.Interfaces),
		HostIfindexes: hostEnds(e.pod.Interfaces),
		CaptureAll:    captureAll,
	})
	e.attached = err == nil && !again
	return more, err
}

// before is what this very sandbox has already. An older one of the same pod, whose DEL is late or never came, does
// not count: attaching replaces it.
func (e *enrolment) before(node *bpf.Node) (info bpf.PodInfo, ok bool) {
	pod, err := node.Pod(e.pinID)
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
	if !e.attached {
		return
	}
	if e.asked {
		// ADD's own context may be what ended.
		if err := release(context.Background(), e.config, e.pod); err != nil {
			e.log.Warn("undo: release", "err", err)
		}
	}
	pins, err := openPins(e.config, e.pod.ContainerID, e.log)
	defer func() { _ = pins.Close() }()
	if err := errors.Join(err, pins.Detach()); err != nil {
		e.log.Warn("undo: detach", "err", err)
	}
}
