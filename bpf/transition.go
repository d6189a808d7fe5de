// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"slices"
	"strings"
)

// updateLinks replaces the programs of p, or attaches those that are missing, and returns the names of their pins.
//
// They are replaced one after another. When settings change, the programs on both sides of capture first get what fits
// the old capture and the new, and what fits the new alone only after it.
func (a *attachment) updateLinks(p *Pod) (map[string]bool, error) {
	pins := map[string]bool{}
	update := func(w *wantedLink) error {
		pins[w.pin] = true
		return w.update(p.dir)
	}
	middle, changes := p.info.between(a.info)
	if !changes {
		return pins, a.eachLink(p, a.info, inOrder, update)
	}
	if err := a.eachLink(p, middle, withoutCapture, update); err != nil {
		return nil, err
	}
	return pins, a.eachLink(p, a.info, captureFirst, update)
}

// between returns what fits the settings of both i and to, and whether these differ: guard lets through what one of them
// exempts, dispatch knows queries if one of them bounces these, and leaves connections to the app if both let its answers
// out.
func (i *PodInfo) between(to PodInfo) (PodInfo, bool) {
	if i.CaptureDNS == to.CaptureDNS && i.BypassInbound == to.BypassInbound && i.Exclude.equal(to.Exclude) {
		return to, false
	}
	to.CaptureDNS = i.CaptureDNS || to.CaptureDNS
	to.BypassInbound = i.BypassInbound && to.BypassInbound
	to.Exclude = i.Exclude.union(to.Exclude)
	return to, true
}

func (e Exclusions) equal(other Exclusions) bool {
	return slices.Equal(e.CIDRs, other.CIDRs) && slices.Equal(e.Ports, other.Ports)
}

// union may have more than MaxExclusions.
func (e Exclusions) union(other Exclusions) Exclusions {
	return Exclusions{CIDRs: slices.Concat(e.CIDRs, other.CIDRs), Ports: slices.Concat(e.Ports, other.Ports)}
}

// choice says which links to work on, in which order.
type choice func([]wantedLink) []wantedLink

func inOrder(links []wantedLink) []wantedLink { return links }

func withoutCapture(links []wantedLink) []wantedLink {
	_, others := splitCapture(links)
	return others
}

func captureFirst(links []wantedLink) []wantedLink {
	captures, others := splitCapture(links)
	return append(captures, others...)
}

func splitCapture(links []wantedLink) (captures, others []wantedLink) {
	for _, l := range links {
		if strings.HasPrefix(l.pin, capturePrefix) {
			captures = append(captures, l)
		} else {
			others = append(others, l)
		}
	}
	return captures, others
}
