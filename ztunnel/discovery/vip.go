// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"net/netip"
	"slices"
)

// IsVIP reports whether an address is one at which a service is reached, also one that a client may not use: such an
// address is known, and is not to be taken for a stranger's.
func (s *Store) IsVIP(network string, a netip.Addr) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	a = a.Unmap()
	return len(s.vips.all(NetworkAddr{network, a})) > 0 || s.ranges[network].contains(a)
}

// ServicesByVIP returns all services at an address: those that have it as their own, then those with a range around it,
// narrow ones first. Visibility plays no part.
func (s *Store) ServicesByVIP(network string, a netip.Addr) []*Service {
	s.mu.RLock()
	defer s.mu.RUnlock()
	a = a.Unmap()
	return slices.Concat(s.vips.all(NetworkAddr{network, a}), s.ranges[network].at(a))
}
