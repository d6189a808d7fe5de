// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

// undecidedError says that a pod may belong into the mesh and nobody could tell: letting it pass could be a bypass.
type undecidedError struct {
	err   error // why the agent did not decide
	known string
}

func (e *undecidedError) Error() string { return fmt.Sprintf("%v (%s)", e.err, e.known) }
func (e *undecidedError) Unwrap() error { return e.err }

// pass is the decision for a pod that is let through without asking.
func pass(reason string) *nodeapi.Decision { return &nodeapi.Decision{Reason: reason} }

// decide asks the agent whether the pod is enrolled. When the agent does not decide, because it is away or because
// this very question is one it refuses, pods of namespaces that were not enrolled when it last ran pass: a broken mesh
// must not keep the rest of the node from starting. All others get an error wrapping *undecidedError.
func decide(ctx context.Context, c *config, id identity, pod *nodeapi.Pod) (*nodeapi.Decision, error) {
	switch {
	case !id.IsPod():
		return pass("the sandbox is no Kubernetes pod"), nil
	case c.Excluded(id.Namespace):
		return pass(fmt.Sprintf("namespace %q is excluded", id.Namespace)), nil
	}
	resp, err := ask(ctx, c, decideTimeout, &nodeapi.Request{Verb: nodeapi.VerbDecide, Pod: pod})
	if err == nil {
		d := resp.Decision
		if d != nil && (!d.Enrolled || d.PinID != "") {
			return d, nil
		}
		err = &nodeapi.UnreachableError{
			Socket: c.AgentSocket, Reason: "what answers there is not the agent: no decision in the answer", Err: nodeapi.ErrGarbage,
		}
	}
	last, lerr := nodeapi.LoadLastKnown(c.StateDir)
	switch {
	case errors.Is(lerr, fs.ErrNotExist):
		return nil, &undecidedError{err, "no agent has ever run here, so any pod may belong into the mesh"}
	case lerr != nil:
		return nil, &undecidedError{err, lerr.Error()}
	case last.MayBeEnrolled(id.Namespace):
		return nil, &undecidedError{err, fmt.Sprintf("namespace %q has pods in the mesh", id.Namespace)}
	}
	return pass(fmt.Sprintf("namespace %q was not enrolled when the agent last ran; now: %v", id.Namespace, err)), nil
}
