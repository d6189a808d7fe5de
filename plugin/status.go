// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

// status fails until the agent has been ready once since boot, unless the last one left the node for good.
//
// Under a kubelet a failing STATUS makes the whole node NotReady. That is right for a node that has never been able
// to enrol a pod, and wrong while an agent restarts: pods that are not enrolled start without it. So this asks the
// ready marker, not the agent, and takes no longer than reading a file.
func (p *plugin) status(args *skel.CmdArgs) error {
	c, err := strictConfig(args.StdinData)
	if err != nil {
		return err
	}
	ready, err := nodeapi.ReadySinceBoot(c.RunDir())
	if err != nil {
		return types.NewError(types.ErrPluginNotAvailable, "sluice-cni: "+err.Error(), "")
	}
	if !ready && !c.hasLeft() {
		return types.NewError(types.ErrPluginNotAvailable,
			"sluice-cni: the Sluice agent has not been ready since this node booted",
			fmt.Sprintf("pods cannot be enrolled yet: see that the agent runs on this node and uses %s", c.AgentSocket))
	}
	return nil
}

// hasLeft reports whether no agent is to come: the last one could not take the plugin along.
func (c *config) hasLeft() bool {
	last, err := nodeapi.LoadLastKnown(c.StateDir)
	return err == nil && last.Left
}
