// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

// del takes the sandbox out of the mesh. It succeeds when there is nothing to take out, and needs neither the network
// namespace nor prevResult nor the agent.
//
// A mistake in the configuration is logged, not returned: pods would be undeletable until somebody corrects it.
func (p *plugin) del(args *skel.CmdArgs) error {
	c, mistakes := parseConfig(args.StdinData)
	id, err := parseArgs(args.Args)
	mistakes = errors.Join(mistakes, err)
	log := p.log(c).With("pod", id.String(), "container", args.ContainerID)
	if mistakes != nil {
		log.Warn("del goes on in spite of mistakes", "err", oneLine(mistakes))
	}
	// The agent first: a pod that still has processes is refused from here on, not let out in clear.
	var errs []error
	if id.IsPod() && !c.Excluded(id.Namespace) {
		errs = append(errs, p.releaseIfAny(c, podOf(c, args, id), log))
	}
	errs = append(errs, detach(c, args.ContainerID, log))
	if err := errors.Join(errs...); err != nil {
		return types.NewError(codeOf(err, codeDatapath), fmt.Sprintf("sluice-cni: delete pod %s: %s", id, oneLine(err)), wayOut(err))
	}
	log.Debug("pod deleted")
	return nil
}

// releaseIfAny tells the agent that the sandbox goes. An agent that is away finds out when it starts, from the pins;
// one that refuses or does not know the pod holds nothing of it. Only a release that went wrong is an error.
func (p *plugin) releaseIfAny(c *config, pod *nodeapi.Pod, log *slog.Logger) error {
	err := release(p.ctx, c, pod)
	var refusal *nodeapi.Error
	switch {
	case err == nil, errors.As(err, &refusal) && refusal.Code == nodeapi.CodeNotFound:
		return nil
	case errors.As(err, &refusal) && refusal.Code == nodeapi.CodeInternal:
		return err
	}
	log.Warn("release", "err", err)
	return nil
}

func release(ctx context.Context, c *config, pod *nodeapi.Pod) error {
	_, err := ask(ctx, c, releaseTimeout, &nodeapi.Request{Verb: nodeapi.VerbRelease, Pod: pod})
	if err != nil {
		return fmt.Errorf("release: %w", err)
	}
	return nil
}

// detach removes the programs of this sandbox. It goes by the container id, because a newer sandbox of the same pod
// may have the same uid. Pods whose record cannot be read are nobody's reason not to delete another one.
func detach(c *config, containerID string, log *slog.Logger) error {
	node, err := bpf.OpenNode(c.PinRoot)
	if errors.Is(err, bpf.ErrNotLoaded) {
		return nil // no pins, so no links of ours either
	}
	if err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	defer func() { _ = node.Close() }()
	pods, err := node.Pods()
	if err != nil {
		log.Warn("detach: some pods are unreadable", "err", oneLine(err))
	}
	var errs []error
	for _, info := range pods {
		if info.ContainerID == containerID {
			errs = append(errs, node.DetachPod(info.ID))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	return nil
}
