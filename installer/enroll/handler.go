// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/sluice-mesh/sluice/installer/ztunnels"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

// Handle answers the node API; see nodeapi.Handler.
func (e *Enroller) Handle(ctx context.Context, req *nodeapi.Request, fds []int) (nodeapi.Answer, *nodeapi.Error) {
	var answer nodeapi.Answer
	var refusal *nodeapi.Error
	switch req.Verb {
	case nodeapi.VerbDecide:
		answer.Decision, refusal = e.decide(ctx, *req.Pod, req.DryRun)
	case nodeapi.VerbServe:
		refusal = e.serve(ctx, req.Pod)
	case nodeapi.VerbRelease:
		refusal = e.release(ctx, req.Pod.ContainerID, req.Pod.Network)
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
		// Perhaps by the agent before this one, of whose pods no ztunnel has said yet whether it serves them.
		if err := e.update(ctx, p, ztunnels.Served); err != nil {
			return refusalOf(fmt.Errorf("serve: %w", err))
		}
		return nil
	case known:
		return nodeapi.Errorf(nodeapi.CodeBadRequest, "serve: pod %s is not enrolled", p.workload())
	}
	if err := e.bringUp(ctx, p, false); err != nil {
		e.podLog(p).Warn("pod not enrolled", "err", err)
		e.refused(p.sandbox, err)
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

// release forgets a sandbox. Its programs are the plugin's to take off, which it does by the pins. That a second
// network (Multus) goes is no end of the pod: the first network's DEL is.
func (e *Enroller) release(ctx context.Context, containerID, network string) *nodeapi.Error {
	p := e.get(containerID)
	if p == nil || (network != "" && p.sandbox.Network != "" && network != p.sandbox.Network) {
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
		if err := e.release(ctx, p.id(), network); err != nil {
			return err
		}
	}
	return nil
}
