// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

// Our own codes. CNI 1.1, section "Error": 100 and up belong to the plugin.
const (
	codeDatapath uint = 100 // ADD, DEL, GC: programs, rule or route could not be put in place or taken away
	codeDamaged  uint = 101 // CHECK: the pod is not, or no longer, captured as ADD left it
)

// oneLine puts joined errors on the one line that ends in an event of the pod.
func oneLine(err error) string {
	return strings.ReplaceAll(err.Error(), "\n", "; ")
}

// codeOf tells the runtime whether trying again later helps. fallback is for errors that say nothing about it.
func codeOf(err error, fallback uint) uint {
	var unreachable *nodeapi.UnreachableError
	var refusal *nodeapi.Error
	switch {
	case errors.As(err, &unreachable), errors.Is(err, bpf.ErrNotLoaded), errors.Is(err, bpf.ErrBusy),
		errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return types.ErrTryAgainLater
	case errors.As(err, &refusal) && refusal.Code == nodeapi.CodeBadRequest:
		return types.ErrInternal
	case errors.As(err, &refusal):
		return types.ErrTryAgainLater
	}
	return fallback
}

// wayOut says what a person can do about err; empty when the error says it all.
func wayOut(err error) string {
	var refusal *nodeapi.Error
	switch code := codeOf(err, 0); {
	case errors.As(err, &refusal) && refusal.Code != nodeapi.CodeTryAgain:
		return "the agent's log on this node says more"
	case code == types.ErrTryAgainLater:
		return "the pod is created as soon as the Sluice agent and its ztunnel on this node are ready: see that both run; " +
			"the runtime tries again by itself"
	}
	return ""
}
