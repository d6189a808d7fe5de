// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// liveCaptures lists the devices that are under capture, by the kernel's word, with the names that they are recorded by.
// One that an AttachPod left which failed half-way has its number for a name.
func (p *Pod) liveCaptures() ([]Capture, error) {
	pins, err := linkPins(p.dir)
	if err != nil {
		return nil, err
	}
	var live []Capture
	for _, pin := range pins {
		number, ok := strings.CutPrefix(pin, capturePrefix)
		if !ok {
			continue
		}
		ifindex, err := strconv.Atoi(number)
		if err != nil {
			return nil, fmt.Errorf("link %s: not ours: %w", pin, err)
		}
		target, err := pinTarget(filepath.Join(p.dir, pin))
		if err != nil {
			return nil, fmt.Errorf("link %s: %w", pin, err)
		}
		if target != 0 {
			live = append(live, p.info.namesOf(ifindex)...)
		}
	}
	return live, nil
}

// namesOf returns the records of a device, of which there may be more than one.
func (i *PodInfo) namesOf(ifindex int) []Capture {
	all := slices.DeleteFunc(slices.Clone(i.Captured), func(c Capture) bool { return c.Ifindex != ifindex })
	if len(all) == 0 {
		all = []Capture{{strconv.Itoa(ifindex), ifindex}}
	}
	return all
}
