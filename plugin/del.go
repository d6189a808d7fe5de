// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

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
	log := p.log(c, id, args)
	if mistakes != nil {
		log.Warn("del goes on in spite of mistakes", "err", oneLine(mistakes))
	}
	if err := p.remove(c, args, id, log); err != nil {
		return types.NewError(codeOf(err, codeDatapath), fmt.Sprintf("sluice-cni: delete pod %s: %s", id, oneLine(err)), wayOut(err))
	}
	log.Debug("pod deleted")
	return nil
}

func (p *plugin) remove(c *config, args *skel.CmdArgs, id identity, log *slog.Logger) error {
	pins, err := openPins(c, args.ContainerID, log)
	defer func() { _ = pins.Close() }()
	if pins.OfAnother(c.Network, args.IfName) {
		return pins.Shrink(args.IfName)
	}
	errs := []error{err}
	// The agent first: a pod that still has processes is refused from here on, not let out in clear. A pod of which
	// nothing is pinned may still be on the agent's list.
	if len(pins.pods) > 0 || id.IsPod() && !c.Excluded(id.Namespace) {
		errs = append(errs, p.releaseIfAny(c, podOf(c, args, id), log))
	}
	return errors.Join(append(errs, pins.Detach())...)
}

// releaseIfAny tells the agent that the sandbox goes. An agent that is away finds out when it starts, from the pins;
// one that refuses or does not know the pod holds nothing of it. Only a release that went wrong is an error.
func (p *plugin) releaseIfAny(c *config, pod *nodeapi.Pod, log *slog.Logger) error {
	err := release(p.ctx, c, pod)
	var refusal *nodeapi.Error
	switch {
	case err == nil:
	case !errors.As(err, &refusal):
		log.Debug("agent not told", "err", err)
	case refusal.Code == nodeapi.CodeInternal:
		return err
	case refusal.Code != nodeapi.CodeNotFound:
		log.Warn("agent refuses", "err", err)
	}
	return nil
}

func release(ctx context.Context, c *config, pod *nodeapi.Pod) error {
	_, err := ask(ctx, c, releaseTimeout, &nodeapi.Request{Verb: nodeapi.VerbRelease, Pod: pod})
	if err != nil {
		return fmt.Errorf("release: %w", err)
	}
	return nil
}
