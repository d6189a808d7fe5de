// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/internal/netns"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

// check compares the pod's capture with what ADD made and names every difference. A pod that is not enrolled is fine.
func (p *plugin) check(args *skel.CmdArgs) error {
	c, err := strictConfig(args.StdinData)
	if err != nil {
		return err
	}
	prev, err := requirePrevResult(c) // CNI 1.1, section "CHECK": it must be there
	if err != nil {
		return err
	}
	id, err := parseArgs(args.Args)
	if err != nil {
		return err
	}
	pod := podOf(c, args, id)
	pod.Interfaces = prev.Interfaces(args.IfName)

	captured, damage := checkPins(c, pod, p.log(c))
	if !captured {
		damage = errors.Join(damage, checkNotEnrolled(p.ctx, c, id, pod))
	}
	if damage == nil {
		return nil
	}
	return types.NewError(codeOf(damage, codeDamaged), fmt.Sprintf("sluice-cni: check pod %s: %s", id, oneLine(damage)), wayOut(damage))
}

// checkPins compares the pod with its pins. captured is false when it has none, or none that can be read.
func checkPins(c *config, want *nodeapi.Pod, log *slog.Logger) (captured bool, damage error) {
	pins, err := openPins(c, want.ContainerID, log)
	defer func() { _ = pins.Close() }()
	if err != nil || len(pins.pods) == 0 {
		return false, err
	}
	info := pins.pods[0]
	pod, err := pins.node.Pod(info.ID)
	if err != nil {
		return true, err
	}
	defer func() { _ = pod.Close() }()
	return true, errors.Join(sameNetns(info, want.Netns), sameInterfaces(info, want), pod.Check())
}

// sameNetns tells whether the namespace that was enrolled is the one the runtime means now.
func sameNetns(info bpf.PodInfo, path string) error {
	ns, err := netns.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	id, err := ns.ID()
	if err != nil {
		return err
	}
	if id.Inode != info.NetnsInode {
		return fmt.Errorf("netns %q has inode %d, but the programs were attached in %d", path, id.Inode, info.NetnsInode)
	}
	return nil
}

// sameInterfaces tells whether every interface of prevResult is captured. Loopbacks are not, and may be listed.
func sameInterfaces(info bpf.PodInfo, want *nodeapi.Pod) error {
	if err := resolveLinks(want); err != nil {
		return err
	}
	var errs []error
	for _, name := range names(want.Interfaces) {
		if !slices.Contains(info.Interfaces, name) {
			errs = append(errs, fmt.Errorf("interface %q is not captured", name))
		}
	}
	return errors.Join(errs...)
}

// checkNotEnrolled is for pods without pins: right, unless they should be enrolled.
func checkNotEnrolled(ctx context.Context, c *config, id identity, pod *nodeapi.Pod) error {
	decision, err := decide(ctx, c, id, pod)
	if err != nil {
		return err
	}
	if decision.Enrolled {
		return errors.New("the pod is enrolled, but no programs are attached to it")
	}
	return nil
}
