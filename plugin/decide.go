// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

// pass is the decision for a pod that is let through without asking.
func pass(reason string) *nodeapi.Decision { return &nodeapi.Decision{Reason: reason} }

// exempt says why the agent need not even be asked about the pod; empty if it must be.
func (r *request) exempt() string {
	switch {
	case !r.id.IsPod():
		return "the sandbox is no Kubernetes pod"
	case r.config.Excluded(r.id.Namespace):
		return fmt.Sprintf("namespace %q is excluded", r.id.Namespace)
	}
	return ""
}

// lookInside completes what prevResult says of the pod. It comes before the question: to a pod without an address nobody
// could connect, and the agent keeps the links in mind also of pods that may be enrolled later. That they cannot be found
// out matters only to a pod that is enrolled now.
func (r *request) lookInside() {
	r.unresolved = resolveLinks(r.pod)
	if len(r.pod.Addresses()) == 0 {
		r.pod.Interfaces[0].Addresses = r.elsewhere
	}
}

// decide asks the agent whether the pod is enrolled. When no agent answers, pods of namespaces that it knew, and that were
// not enrolled, when it last ran pass: a broken mesh must not keep the rest of the node from starting. For all others letting them pass could
// be a bypass: an error. So could it be to go by what was known last when an agent does answer, and refuses: it may have
// found the pod enrolled, and failed after that.
//
// A dry run does not enrol the pod afterwards.
func (r *request) decide(ctx context.Context, dryRun bool) (*nodeapi.Decision, error) {
	if reason := r.exempt(); reason != "" {
		return pass(reason), nil
	}
	r.lookInside()
	resp, err := ask(ctx, r.config, decideTimeout, &nodeapi.Request{Verb: nodeapi.VerbDecide, Pod: r.pod, DryRun: dryRun})
	if err == nil && resp.Decision == nil {
		err = &nodeapi.UnreachableError{
			Socket: r.config.AgentSocket, Reason: "what answers there is not the agent: no decision in the answer", Err: nodeapi.ErrGarbage,
		}
	}
	var unreachable *nodeapi.UnreachableError
	switch {
	case errors.As(err, &unreachable):
		return r.lastKnown(err)
	case err != nil:
		return nil, fmt.Errorf("decide: %w", err)
	case resp.Decision.Enrolled && resp.Decision.PinID == "":
		return nil, fmt.Errorf("decide: %w", nodeapi.Errorf(nodeapi.CodeBadRequest, "the pod is enrolled, but without a pin id"))
	}
	return resp.Decision, nil
}

// lastKnown decides without the agent, which err keeps away.
func (r *request) lastKnown(err error) (*nodeapi.Decision, error) {
	last, lerr := nodeapi.LoadLastKnown(r.config.StateDir)
	switch {
	case errors.Is(lerr, fs.ErrNotExist):
		return nil, fmt.Errorf("%w (no agent has ever run here, so any pod may belong into the mesh)", err)
	case lerr != nil:
		return nil, fmt.Errorf("%w (%v)", err, lerr)
	case last.IsNew(r.id.Namespace):
		return nil, fmt.Errorf("%w (namespace %q came after the agent last ran, so it may belong into the mesh)", err, r.id.Namespace)
	case last.MayBeEnrolled(r.id.Namespace):
		return nil, fmt.Errorf("%w (namespace %q has pods in the mesh)", err, r.id.Namespace)
	}
	return pass(fmt.Sprintf("namespace %q was not enrolled when the agent last ran; now: %v", r.id.Namespace, err)), nil
}
