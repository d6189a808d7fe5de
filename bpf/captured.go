// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf/link"

	"github.com/sluice-mesh/sluice/internal/netns"
)

// liveCaptures lists the devices that are under capture, by the kernel's word, with the names that they are recorded by.
// One that an AttachPod left which failed half-way has its number for a name.
func (p *Pod) liveCaptures(ns *netns.NS) ([]Capture, error) {
	pins, err := linkPins(p.dir)
	if err != nil {
		return nil, err
	}
	var live []Capture
	for _, pin := range pins {
		if !strings.HasPrefix(pin, capturePrefix) {
			continue
		}
		ifindex, err := pinIfindex(pin)
		if err != nil {
			return nil, err
		}
		is, err := isLiveCapture(filepath.Join(p.dir, pin), ifindex, ns)
		if err != nil {
			return nil, fmt.Errorf("link %s: %w", pin, err)
		}
		if is {
			live = append(live, p.info.namesOf(ifindex)...)
		}
	}
	return live, nil
}

// isLiveCapture goes by the device for a filter, which the pod may have removed: it needs capture all the same.
func isLiveCapture(path string, ifindex int, ns *netns.NS) (is bool, err error) {
	p, err := loadPin(path)
	if err != nil {
		return false, err
	}
	defer func() { _ = p.Close() }()
	if l, ok := p.(link.Link); ok {
		target, err := targetOf(l)
		return target != 0, err
	}
	err = ns.Do(func() (err error) {
		is, err = hasDevice(ifindex)
		return err
	})
	return is, err
}

// namesOf returns the records of a device, of which there may be more than one.
func (i *PodInfo) namesOf(ifindex int) []Capture {
	all := slices.DeleteFunc(slices.Clone(i.Captured), func(c Capture) bool { return c.Ifindex != ifindex })
	if len(all) == 0 {
		all = []Capture{{strconv.Itoa(ifindex), ifindex}}
	}
	return all
}
