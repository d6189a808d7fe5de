// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/sluice-mesh/sluice/bpf"
)

// pins is what one sandbox has pinned. It is found by the container id, because a newer sandbox of the same pod may
// have the same uid.
type pins struct {
	node *bpf.Node // nil if no agent ever loaded one
	pods []bpf.PodInfo
}

// openPins finds the sandbox's pins; none is no error. The caller closes the result, which is never nil.
//
// Pods whose record cannot be read are logged and left to the agent: they are nobody's reason not to delete another.
func openPins(c *config, containerID string, log *slog.Logger) (*pins, error) {
	node, err := bpf.OpenNode(c.PinRoot)
	if errors.Is(err, bpf.ErrNotLoaded) {
		return &pins{}, nil
	}
	if err != nil {
		return &pins{}, fmt.Errorf("find pins: %w", err)
	}
	pods, err := node.Pods()
	if err != nil {
		log.Warn("some pods are unreadable", "err", oneLine(err))
	}
	pods = slices.DeleteFunc(pods, func(info bpf.PodInfo) bool { return info.ContainerID != containerID })
	return &pins{node: node, pods: pods}, nil
}

func (p *pins) Close() error {
	if p.node == nil {
		return nil
	}
	return p.node.Close()
}

// Detach removes the sandbox's programs.
func (p *pins) Detach() error {
	var errs []error
	for _, info := range p.pods {
		errs = append(errs, p.node.DetachPod(info.ID))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	return nil
}

// OfAnother tells whether the sandbox was enrolled by the ADD of another network than this one, which then only added
// ifName to it: the pod leaves the mesh with the network that brought it in, or with its last interface.
func (p *pins) OfAnother(network, ifName string) bool {
	return slices.ContainsFunc(p.pods, func(info bpf.PodInfo) bool {
		last := !slices.ContainsFunc(info.Interfaces, func(name string) bool { return name != ifName })
		return info.Network != "" && info.Network != network && !last
	})
}

// Shrink gives one interface of the sandbox up and keeps the others captured.
func (p *pins) Shrink(ifName string) error {
	var errs []error
	for _, info := range p.pods {
		errs = append(errs, p.node.ReleaseInterface(info.ID, ifName))
	}
	return errors.Join(errs...)
}

// attach attaches, or attaches again with other interfaces.
func attach(node *bpf.Node, info bpf.PodInfo) error {
	pod, err := node.AttachPod(bpf.PodConfig{
		ID:            info.ID,
		UID:           info.UID,
		Namespace:     info.Namespace,
		Name:          info.Name,
		ContainerID:   info.ContainerID,
		Network:       info.Network,
		NetnsPath:     info.NetnsPath,
		Interfaces:    info.Interfaces,
		HostIfindexes: info.HostIfindexes,
		CaptureAll:    info.CaptureAll,
		CaptureDNS:    info.CaptureDNS,
		BypassInbound: info.BypassInbound,
		Exclude:       info.Exclude,
		Addresses:     info.Addresses,
	})
	if err != nil {
		return err
	}
	return pod.Close()
}
