// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"maps"
	"net/netip"
	"slices"
)

// CaptureSet is which destinations concern the mesh. Everything else may stay in the kernel.
type CaptureSet struct {
	// Addrs are sorted.
	Addrs []netip.Addr
	// Complete is false if Addrs cannot name all destinations, because a service has a range of addresses.
	Complete bool
}

// CaptureSet returns the destinations of one network for which ztunnel has more to do than pass bytes on: workloads that
// speak HBONE or are behind a waypoint, and VIPs of services that are behind one or have any such workload.
//
// Health plays no part: while all pods of a service are unready its VIP stays in the set, so that no connection slips
// past in clear. Addresses of workloads that are gone stay for a moment, see [Store.Gone]. Whoever keeps a kernel set equal to this adds before it removes, again after each change of Addresses.
func (s *Store) CaptureSet(network string) CaptureSet {
	s.mu.RLock()
	defer s.mu.RUnlock()
	addrs := map[netip.Addr]struct{}{}
	for key, workloads := range s.byAddr.byKey {
		if key.Network == network && slices.ContainsFunc(workloads, (*Workload).inMesh) {
			addrs[key.Addr] = struct{}{}
		}
	}
	for key := range s.gone {
		if key.Network == network {
			addrs[key.Addr] = struct{}{}
		}
	}
	for key, services := range s.vips.byKey {
		if key.Network == network && slices.ContainsFunc(services, s.serviceInMesh) {
			addrs[key.Addr] = struct{}{}
		}
	}
	set := CaptureSet{Complete: true}
	if ranges := s.ranges[network]; ranges != nil {
		set.Complete = !slices.ContainsFunc(ranges.all(), s.serviceInMesh)
	}
	set.Addrs = slices.SortedFunc(maps.Keys(addrs), netip.Addr.Compare)
	return set
}

// CaptureAddrs returns [CaptureSet]'s addresses alone.
func (s *Store) CaptureAddrs(network string) []netip.Addr { return s.CaptureSet(network).Addrs }

func (w *Workload) inMesh() bool { return w.Protocol == ProtocolHBONE || w.Waypoint != nil }

func (s *Store) serviceInMesh(svc *Service) bool {
	if svc.Waypoint != nil || len(svc.WeightedWaypoints) > 0 {
		return true
	}
	for _, w := range s.members[svc.Key()] {
		if w.inMesh() {
			return true
		}
	}
	return false
}
