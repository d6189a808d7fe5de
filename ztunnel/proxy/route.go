// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/sluice-mesh/sluice/ztunnel/discovery"
)

// route is where an outbound connection goes, and how.
type route struct {
	// carried is VerdictMTLS, VerdictPlaintext, VerdictPassthrough or VerdictLocal.
	carried Verdict
	// dial is the address to connect to; without an address, but with a port, workload's host name is to be resolved
	// first, see [podProxy.resolve].
	dial netip.AddrPort
	// authority is the CONNECT target behind dial; only with VerdictMTLS. It is "" as long as it depends on a host name's
	// address, and then target is its port.
	authority string
	target    uint16
	// expected are the SPIFFE identities of which the peer must have one; only with VerdictMTLS.
	expected []string
	// inner are those that the far end must have one of, when the peer is another network's gateway; nil if it is not.
	inner []string
	// waypoint: whoever answers passes the connection on.
	waypoint bool
	// workload is who answers at dial, nil if unknown. service is what the client asked for, nil if it was no VIP.
	workload *discovery.Workload
	service  *discovery.Service
}

// router decides where connections go. It only looks things up.
type router struct {
	store   *discovery.Store
	network string
	turn    atomic.Uint64 // of pick
	// redirected means that ztunnel listens on ports of the pod's own.
	redirected bool
}

// outbound decides where a connection of src to the address to goes. Ambient section 8.1.
//
// An address that is known but has nobody to serve it is an error; only an address nobody told us about passes through,
// or one that was somebody's in the mesh some time ago.
func (r *router) outbound(src *discovery.Workload, to netip.AddrPort) (*route, error) {
	if to.Addr().IsLoopback() && r.isReserved(to.Port()) {
		return nil, refuse(VerdictReservedPort, "port %d is ztunnel's own", to.Port())
	}
	// Service first: a VIP names more than the workload that happens to have the address too.
	if svc := r.store.ServiceByVIP(r.network, to.Addr(), src.Namespace); svc != nil {
		return r.toService(src, svc, to)
	}
	w := r.store.WorkloadByAddr(r.network, to.Addr())
	if w == nil && r.store.IsVIP(r.network, to.Addr()) {
		return nil, refuse(VerdictNoEndpoint, "no healthy upstream: the service at %s is not visible in namespace %s", to, src.Namespace)
	}
	if w != nil {
		return r.toAddressOf(src, w, to)
	}
	return r.passThrough(to, nil)
}

// passThrough leaves a connection as it is, unless the address was somebody's in the mesh until a moment ago.
func (r *router) passThrough(to netip.AddrPort, svc *discovery.Service) (*route, error) {
	if name := r.store.Gone(r.network, to.Addr()); name != "" {
		return nil, refuse(VerdictNoEndpoint, "no healthy upstream: %s was %s, which is gone", to.Addr(), name)
	}
	return &route{carried: VerdictPassthrough, dial: to, service: svc}, nil
}

// toAddressOf goes to the address that the client asked for, which is w's own.
func (r *router) toAddressOf(src, w *discovery.Workload, to netip.AddrPort) (*route, error) {
	if w.Waypoint != nil && !r.isWaypoint(src, w.Waypoint) {
		return r.viaWaypoint(src, w.Waypoint, nil, to)
	}
	return r.toWorkload(src, w, nil, to)
}

func (r *router) toService(src *discovery.Workload, svc *discovery.Service, to netip.AddrPort) (*route, error) {
	if gw := r.waypointOf(svc); gw != nil {
		return r.viaWaypoint(src, gw, svc, to)
	}
	pick, err := r.balance(src, svc, to, forTarget)
	if err != nil {
		return nil, err
	}
	if pick == nil { // the original destination, which may be a pod that is to be reached as any other
		if w := r.store.WorkloadByAddr(r.network, to.Addr()); w != nil {
			return r.toAddressOf(src, w, to)
		}
		return r.passThrough(to, svc)
	}
	if pick.workload.Network != r.network {
		return r.throughGateway(src, pick.workload, svc, to)
	}
	return r.toWorkload(src, pick.workload, svc, pick.addr)
}

// waypointOf chooses among several waypoints by weight, else takes the one there is.
func (r *router) waypointOf(svc *discovery.Service) *discovery.Gateway {
	var total uint64
	for _, g := range svc.WeightedWaypoints {
		total += uint64(g.Weight)
	}
	if total == 0 {
		return svc.Waypoint
	}
	at := rand.Uint64N(total) // not r.take: an endpoint is chosen next
	for i, g := range svc.WeightedWaypoints {
		if weight := uint64(g.Weight); at >= weight {
			at -= weight
			continue
		}
		return &svc.WeightedWaypoints[i].Gateway
	}
	return svc.Waypoint
}

// toWorkload ends at w: in HBONE if w speaks it.
func (r *router) toWorkload(src, w *discovery.Workload, svc *discovery.Service, to netip.AddrPort) (*route, error) {
	if w.UID == src.UID {
		return &route{carried: VerdictLocal, dial: to, workload: w, service: svc}, nil
	}
	if w.Protocol != discovery.ProtocolHBONE {
		return &route{carried: VerdictPlaintext, dial: to, workload: w, service: svc}, nil
	}
	end := &route{
		carried: VerdictMTLS, dial: netip.AddrPortFrom(to.Addr(), hbonePort), target: to.Port(),
		expected: expected(w, svc), workload: w, service: svc,
	}
	if to.Addr().IsValid() {
		end.authority = to.String()
	}
	return end, nil
}

// at completes a route to a host name by its address.
func (r *route) at(a netip.Addr) {
	r.dial = netip.AddrPortFrom(a, r.dial.Port())
	if r.carried == VerdictMTLS && r.authority == "" {
		r.authority = netip.AddrPortFrom(a, r.target).String()
	}
}

const hbonePort = 15008

// expected are the identities that may answer for w, chosen for svc: ambient section 4.1.
func expected(w *discovery.Workload, svc *discovery.Service) []string {
	ids := []string{w.Identity().String()}
	if svc != nil {
		ids = append(ids, svc.SubjectAltNames...)
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}
