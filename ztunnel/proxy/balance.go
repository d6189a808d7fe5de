// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/sluice-mesh/sluice/ztunnel/discovery"
)

// endpoint is who was chosen to serve a connection. addr has a port but no address if the workload is to be found by its
// host name, or through the gateway of its network.
type endpoint struct {
	workload *discovery.Workload
	addr     netip.AddrPort
}

// purpose is what an endpoint is wanted for.
type purpose uint8

const (
	forTarget   purpose = iota // the connection's own
	forWaypoint                // which may have its port from its application tunnel
	forGateway                 // into another network, so its address may be of that one
)

// balance chooses an endpoint of svc for a connection of src to the address to, by ambient section 8.2. A nil endpoint
// means that the service wants the original destination.
func (r *router) balance(src *discovery.Workload, svc *discovery.Service, to netip.AddrPort, why purpose) (*endpoint, error) {
	var candidates []endpoint
	for _, e := range r.store.Endpoints(svc.Key()) {
		port, ok := e.TargetPort(svc, to.Port())
		if !ok && why == forWaypoint && e.Workload.AppTunnel != nil {
			port, ok = to.Port(), true
		}
		if !ok {
			continue
		}
		if addr, ok := r.addressFor(e.Workload, svc.IPFamilies, to.Addr(), why); ok {
			candidates = append(candidates, endpoint{e.Workload, netip.AddrPortFrom(addr, port)})
		}
	}
	picked := r.pick(nearest(src, svc, candidates), why)
	switch {
	case picked != nil:
		return picked, nil
	case svc.LoadBalancing.Mode == discovery.ModePassthrough && why == forTarget:
		return nil, nil
	}
	if _, ok := svc.Ports[to.Port()]; !ok {
		return nil, refuse(VerdictNoEndpoint, "no healthy upstream: service %s has no port %d", svc.Key(), to.Port())
	}
	return nil, refuse(VerdictNoEndpoint, "no healthy upstream: service %s has no endpoint for port %d", svc.Key(), to.Port())
}

// pick takes turns among candidates in proportion to their capacity, nil if none has any. A gateway is chosen at random: turns
// of the endpoint behind it would decide on it, too.
func (r *router) pick(candidates []endpoint, why purpose) *endpoint {
	var total uint64
	for _, c := range candidates {
		total += uint64(c.workload.Capacity)
	}
	if total == 0 {
		return nil
	}
	take := r.take
	if why == forGateway {
		take = rand.Uint64N
	}
	at := take(total)
	for i, c := range candidates {
		if capacity := uint64(c.workload.Capacity); at >= capacity {
			at -= capacity
			continue
		}
		return &candidates[i]
	}
	return nil
}

// take returns a number below total, each time another.
//
// Multiples of the golden ratio spread evenly over any number of choices and any weights, without a state per service:
// neighbouring connections go to different endpoints, and every endpoint gets its share soon.
func (r *router) take(total uint64) uint64 {
	const goldenRatio = 0x9E3779B97F4A7C15
	at, _ := bits.Mul64(r.turn.Add(1)*goldenRatio, total)
	return at
}

// nearest leaves the candidates that rank highest by the service's preferences.
func nearest(src *discovery.Workload, svc *discovery.Service, candidates []endpoint) []endpoint {
	lb := svc.LoadBalancing
	if lb.Mode != discovery.ModeStrict && lb.Mode != discovery.ModeFailover {
		return candidates
	}
	best := 0
	if lb.Mode == discovery.ModeStrict {
		best = len(lb.RoutingPreference)
	}
	var out []endpoint
	for _, c := range candidates {
		rank := rankOf(src, c.workload, lb.RoutingPreference)
		if rank > best {
			best, out = rank, out[:0]
		}
		if rank == best {
			out = append(out, c)
		}
	}
	return out
}

// rankOf counts the preferences that a and b have in common, up to the first that they do not. A network, when it is the
// first preference, outranks all that follow and does not end the count.
func rankOf(a, b *discovery.Workload, preferences []discovery.Scope) (rank int) {
	for i, scope := range preferences {
		same := sameScope(a, b, scope)
		first := i == 0 && scope == discovery.ScopeNetwork
		switch {
		case same && first:
			rank += len(preferences)
		case same:
			rank++
		case !first:
			return rank
		}
	}
	return rank
}

func sameScope(a, b *discovery.Workload, scope discovery.Scope) bool {
	switch scope {
	case discovery.ScopeRegion:
		return a.Locality.Region == b.Locality.Region
	case discovery.ScopeZone:
		return a.Locality.Zone == b.Locality.Zone
	case discovery.ScopeSubzone:
		return a.Locality.Subzone == b.Locality.Subzone
	case discovery.ScopeNode:
		return a.Node == b.Node
	case discovery.ScopeCluster:
		return a.ClusterID == b.ClusterID
	case discovery.ScopeNetwork:
		return a.Network == b.Network
	}
	return false
}

// addressFor chooses the address at which w is connected to, an invalid one if only its host name is known or its gateway
// knows. It is false if w cannot be reached at all.
func (r *router) addressFor(w *discovery.Workload, families discovery.IPFamilies, original netip.Addr, why purpose) (netip.Addr, bool) {
	if why != forGateway && w.Network != r.network {
		return netip.Addr{}, w.NetworkGateway != nil || len(w.Addresses) > 0 || w.Hostname != ""
	}
	if addr, ok := ownAddress(w, families, original); ok {
		return addr, true
	}
	return netip.Addr{}, len(w.Addresses) == 0 && w.Hostname != ""
}

// ownAddress chooses among the addresses of w: the original destination if w owns it, else one of the family the client
// used, else the first; of those that the service serves.
func ownAddress(w *discovery.Workload, families discovery.IPFamilies, original netip.Addr) (netip.Addr, bool) {
	if w.Owns(original) {
		return original, true
	}
	serves := func(a netip.Addr) bool {
		switch families {
		case discovery.FamiliesIPv4:
			return a.Is4()
		case discovery.FamiliesIPv6:
			return !a.Is4()
		}
		return true
	}
	if i := slices.IndexFunc(w.Addresses, func(a netip.Addr) bool { return serves(a) && a.Is4() == original.Is4() }); i >= 0 {
		return w.Addresses[i], true
	}
	if i := slices.IndexFunc(w.Addresses, serves); i >= 0 {
		return w.Addresses[i], true
	}
	return netip.Addr{}, false
}
