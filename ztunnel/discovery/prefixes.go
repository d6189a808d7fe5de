// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"cmp"
	"net/netip"
	"slices"
)

// prefixes finds services by the range of addresses that one of theirs is in: one lookup per prefix length in use.
type prefixes struct {
	services index[netip.Prefix, *Service]
	lengths  map[int]int // prefixes in use by length
	sorted   []int       // the keys of lengths, longest first
}

func newPrefixes() *prefixes {
	return &prefixes{services: newIndex[netip.Prefix](preferred), lengths: map[int]int{}}
}

func (p *prefixes) add(prefix netip.Prefix, svc *Service) {
	p.services.add(prefix, svc)
	p.count(prefix.Bits(), 1)
}

func (p *prefixes) remove(prefix netip.Prefix, svc *Service) {
	p.services.remove(prefix, svc)
	p.count(prefix.Bits(), -1)
}

func (p *prefixes) count(length, by int) {
	p.lengths[length] += by
	if p.lengths[length] == 0 {
		delete(p.lengths, length)
	}
	p.sorted = sortedKeys(p.lengths, func(a, b int) int { return cmp.Compare(b, a) })
}

// find ranks by: in the client's namespace, then the longest prefix, then canonical. Ambient section 5.8.
func (p *prefixes) find(a netip.Addr, clientNamespace string) *Service {
	if p == nil {
		return nil
	}
	var best *Service
	for _, length := range p.sorted {
		prefix, err := a.Prefix(length)
		if err != nil {
			continue // longer than an address of this family
		}
		svc := choose(p.services.all(prefix), clientNamespace)
		if svc == nil {
			continue
		}
		if svc.Namespace == clientNamespace {
			return svc
		}
		if best == nil {
			best = svc
		}
	}
	return best
}

// at lists the services that have a range with the address in it, narrow ranges first.
func (p *prefixes) at(a netip.Addr) []*Service {
	if p == nil {
		return nil
	}
	var list []*Service
	for _, length := range p.sorted {
		if prefix, err := a.Prefix(length); err == nil {
			list = append(list, p.services.all(prefix)...)
		}
	}
	return list
}

// all lists every service once per range, in no order.
func (p *prefixes) all() []*Service {
	var list []*Service
	for _, services := range p.services.byKey {
		list = slices.Concat(list, services)
	}
	return list
}
