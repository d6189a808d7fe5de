// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/internal/netns"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

// check compares the pod's capture with what ADD made and names every difference. A pod that is not enrolled is fine.
//
// CNI 1.1, section "CHECK": prevResult must be there.
func (p *plugin) check(args *skel.CmdArgs) error {
	r, err := p.parse(args)
	if err != nil {
		return err
	}
	captured, damage := r.checkPins()
	if !captured && damage == nil {
		damage = r.checkNotEnrolled(p.ctx)
	}
	if damage == nil {
		return nil
	}
	return types.NewError(codeOf(damage, codeDamaged), fmt.Sprintf("sluice-cni: check pod %s: %s", r.id, oneLine(damage)), wayOut(damage))
}

// checkPins compares the pod with its pins. captured is false when it has none, or none that can be read.
func (r *request) checkPins() (captured bool, damage error) {
	pins, err := openPins(r.config, r.pod.ContainerID, r.log)
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
	return true, errors.Join(sameNetns(info, r.pod.Netns), sameInterfaces(info, r.pod), pod.Check())
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
func (r *request) checkNotEnrolled(ctx context.Context) error {
	decision, err := r.decide(ctx, true)
	if err != nil {
		return err
	}
	if decision.Enrolled {
		return errors.New("the pod is enrolled, but no programs are attached to it")
	}
	return nil
}
