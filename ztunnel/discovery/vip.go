// SPDX-License-Identifier: Apache-2.0

package discovery

import "net/netip"

// IsVIP reports whether an address is one at which a service is reached, also one that a client may not use: such an
// address is known, and is not to be taken for a stranger's.
func (s *Store) IsVIP(network string, a netip.Addr) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	a = a.Unmap()
	return len(s.vips.all(NetworkAddr{network, a})) > 0 || s.ranges[network].contains(a)
}
