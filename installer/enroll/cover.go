// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"fmt"
	"net"
	"slices"

	"github.com/sluice-mesh/sluice/bpf"
)

// attachment says how to attach to all that is known of the pod: by what ADDs told, and by its pins if it has some.
//
// A name is given up only if it came with another network, whose DEL takes the interface away without asking the agent,
// and the kernel has neither an interface of that name nor the one it was when it was attached. That an interface of the
// pod's own network is not to be found is an error: under another name it would lead past the mesh.
func (e *Enroller) attachment(p *pod, in *inside, pinned bpf.PodInfo) (bpf.PodConfig, error) {
	links, err := in.links()
	if err != nil {
		return bpf.PodConfig{}, err
	}
	cfg := podConfig(p, e.interfacesOf(p), e.settingsInForce(p))
	own := podConfig(p, p.sandbox.Interfaces, Settings{}).Interfaces
	cfg.Interfaces = slices.DeleteFunc(union(cfg.Interfaces, pinned.Interfaces), func(name string) bool {
		return !slices.Contains(own, name) && !slices.ContainsFunc(links, func(l net.Interface) bool {
			return l.Name == name || slices.Contains(pinned.Captured, bpf.Capture{Name: name, Ifindex: l.Index})
		})
	})
	cfg.HostIfindexes = slices.DeleteFunc(union(cfg.HostIfindexes, pinned.HostIfindexes), func(i int) bool {
		_, err := net.InterfaceByIndex(i)
		return err != nil
	})
	return cfg, nil
}

func union[T comparable](list, more []T) []T {
	all := slices.Clone(list)
	for _, v := range more {
		if !slices.Contains(all, v) {
			all = append(all, v)
		}
	}
	return all
}

// cover has a pod's programs cover all that is known of it, and its pins name the network that it came with: an ADD for
// a second network may have been the one that attached, and its DEL must not take the pod along. It takes attached over
// and returns what takes its place.
func (e *Enroller) cover(p *pod, in *inside, attached *bpf.Pod) (*bpf.Pod, error) {
	info := attached.Info()
	cfg, err := e.attachment(p, in, info)
	if err == nil && covers(info, cfg) {
		return attached, nil
	}
	_ = attached.Close()
	if err != nil {
		return nil, err
	}
	e.podLog(p).Info("attaching to what is not covered", "attached", info.Interfaces, "known", cfg.Interfaces)
	again, err := e.cfg.Node.AttachPod(cfg)
	if err != nil {
		return nil, fmt.Errorf("cover all interfaces: %w", err)
	}
	fault("attached to more")
	return again, nil
}

func covers(info bpf.PodInfo, cfg bpf.PodConfig) bool {
	return info.Network == cfg.Network && attachedSettings(info).Equal(configuredSettings(cfg)) && len(union(info.Interfaces, cfg.Interfaces)) == len(info.Interfaces) &&
		len(union(info.HostIfindexes, cfg.HostIfindexes)) == len(info.HostIfindexes) &&
		len(info.Addresses) == len(cfg.Addresses) && len(union(info.Addresses, cfg.Addresses)) == len(cfg.Addresses)
}
