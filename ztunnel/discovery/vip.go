// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"net/netip"
	"slices"
)

// IsVIP reports whether an address is a service's own, also of one that a client may not use: such an address is known, and is
// not to be taken for a stranger's. A range is no address of its own: what one namespace says of it for itself is nothing to
// others.
func (s *Store) IsVIP(network string, a netip.Addr) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	a = a.Unmap()
	return len(s.vips.all(NetworkAddr{network, a})) > 0
}

// ServicesByVIP returns all services at an address: those that have it as their own, then those with a range around it,
// narrow ones first, unless a workload has the address. Visibility plays no part.
func (s *Store) ServicesByVIP(network string, a netip.Addr) []*Service {
	s.mu.RLock()
	defer s.mu.RUnlock()
	a = a.Unmap()
	own := s.vips.all(NetworkAddr{network, a})
	if s.byAddr.first(NetworkAddr{network, a}) != nil {
		return own
	}
	return slices.Concat(own, s.ranges[network].at(a))
}
