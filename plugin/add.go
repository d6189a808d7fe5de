// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"

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
	if err := e.attach(node, captureAll); err != nil {
		return fmt.Errorf("attach: %w", err)
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
func (e *enrolment) attach(node *bpf.Node, captureAll bool) error {
	if err := resolveLinks(e.pod); err != nil {
		return err
	}
	again := e.isAttached(node)
	pod, err := node.AttachPod(bpf.PodConfig{
		ID:            e.pinID,
		UID:           e.pod.UID,
		Namespace:     e.pod.Namespace,
		Name:          e.pod.Name,
		ContainerID:   e.pod.ContainerID,
		Network:       e.pod.Network,
		NetnsPath:     e.pod.Netns,
		Interfaces:    names(e.pod.Interfaces),
		HostIfindexes: hostEnds(e.pod.Interfaces),
		CaptureAll:    captureAll,
	})
	if err != nil {
		return err
	}
	e.attached = !again
	return pod.Close()
}

// isAttached tells whether this very sandbox has programs already. An older one of the same pod, whose DEL is late or
// never came, does not count: AttachPod replaces it.
func (e *enrolment) isAttached(node *bpf.Node) bool {
	pod, err := node.Pod(e.pinID)
	if err != nil {
		return false
	}
	defer func() { _ = pod.Close() }()
	return pod.Info().ContainerID == e.pod.ContainerID
}

// undo leaves the node as enrol found it. What fails here is logged: the error that matters is the one that led here,
// and the DEL that the runtime sends after a failed ADD tries once more.
func (e *enrolment) undo() {
	ctx := context.Background() // ADD's own may be what ended
	if e.asked {
		if err := release(ctx, e.config, e.pod); err != nil {
			e.log.Warn("undo: release", "err", err)
		}
	}
	if !e.attached {
		return
	}
	if err := detach(e.config, e.pod.ContainerID, e.log); err != nil {
		e.log.Warn("undo: detach", "err", err)
	}
}
