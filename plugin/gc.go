// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

// gc detaches the pods of this network that are not among the runtime's valid attachments, and what is left of pods
// that are gone anyway. Without a list it removes only the latter.
func (p *plugin) gc(args *skel.CmdArgs) error {
	c, err := strictConfig(args.StdinData)
	if err != nil {
		return err
	}
	if err := collect(c); err != nil {
		return types.NewError(codeDatapath, fmt.Sprintf("sluice-cni: gc: %s", oneLine(err)), "")
	}
	if c.ValidAttachments == nil {
		return nil
	}
	req := &nodeapi.Request{Verb: nodeapi.VerbGC, Network: c.Network, Valid: []nodeapi.Attachment{}}
	for _, a := range c.ValidAttachments {
		req.Valid = append(req.Valid, nodeapi.Attachment{ContainerID: a.ContainerID, IfName: a.IfName})
	}
	// The pins are what counts; the agent compares itself with them when it starts.
	if _, err := ask(p.ctx, c, releaseTimeout, req); err != nil {
		p.log(c, identity{}, args).Warn("gc: tell agent", "err", err)
	}
	return nil
}

func collect(c *config) error {
	node, err := bpf.OpenNode(c.PinRoot)
	if errors.Is(err, bpf.ErrNotLoaded) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = node.Close() }()
	valid := map[string]bool{}
	for _, a := range c.ValidAttachments {
		valid[a.ContainerID] = true
	}
	_, err = node.Collect(func(info bpf.PodInfo) bool {
		ofOthers := info.Network != c.Network || info.ContainerID == ""
		return c.ValidAttachments == nil || ofOthers || valid[info.ContainerID]
	})
	return err
}
