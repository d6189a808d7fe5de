// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net/netip"

	"github.com/sluice-mesh/sluice/ztunnel/discovery"
)

// viaWaypoint routes a connection of src to the address to through the waypoint gw, which decides the rest. svc is the
// service the client asked for, nil for none. A waypoint that cannot be found or has nobody is an error: what it would
// enforce must not be left out.
func (r *router) viaWaypoint(src *discovery.Workload, gw *discovery.Gateway, svc *discovery.Service, to netip.AddrPort) (*route, error) {
	w, at, waypointService, err := r.resolveGateway(src, gw, to.Addr())
	if err != nil {
		return nil, err
	}
	if w.Network != r.network {
		return nil, refuse(VerdictOtherNetwork, "waypoint %s is on network %q, ztunnel on %q: other networks are not supported yet", gw, w.Network, r.network)
	}
	return &route{
		carried: VerdictMTLS, dial: at, authority: to.String(),
		expected: expected(w, waypointService), workload: w, service: svc,
	}, nil
}

// resolveGateway finds who answers for gw, and where; the service is nil if gw is a workload. family is an address of the
// family to prefer.
func (r *router) resolveGateway(src *discovery.Workload, gw *discovery.Gateway, family netip.Addr) (*discovery.Workload, netip.AddrPort, *discovery.Service, error) {
	svc, w := r.gateway(src, gw)
	switch {
	case svc != nil:
		to := netip.AddrPortFrom(family, gw.Port)
		if gw.Address.Addr.IsValid() {
			to = netip.AddrPortFrom(gw.Address.Addr, gw.Port)
		}
		pick, err := r.balance(src, r.waypointPorts(svc, gw.Port), to)
		if err != nil || pick == nil {
			return nil, netip.AddrPort{}, nil, refuse(VerdictWaypoint, "waypoint %s: no healthy upstream", gw)
		}
		return pick.workload, pick.addr, svc, nil
	case w != nil && len(w.Addresses) > 0:
		addr := w.Addresses[0]
		for _, a := range w.Addresses {
			if a == gw.Address.Addr || !gw.Address.Addr.IsValid() && a.Is4() == family.Is4() {
				addr = a
				break
			}
		}
		return w, netip.AddrPortFrom(addr, gw.Port), nil, nil
	}
	return nil, netip.AddrPort{}, nil, refuse(VerdictWaypoint, "waypoint %s is unknown", gw)
}

// gateway looks up what gw refers to.
func (r *router) gateway(src *discovery.Workload, gw *discovery.Gateway) (*discovery.Service, *discovery.Workload) {
	if gw.Address.Addr.IsValid() {
		if svc := r.store.ServiceByVIP(gw.Address.Network, gw.Address.Addr, src.Namespace); svc != nil {
			return svc, nil
		}
		return nil, r.store.WorkloadByAddr(gw.Address.Network, gw.Address.Addr)
	}
	if svc := r.store.ServiceByHostname(gw.Hostname.Namespace, gw.Hostname.Hostname, src.Namespace); svc != nil {
		return svc, nil
	}
	return nil, r.store.WorkloadByHostname(gw.Hostname.Hostname, gw.Hostname.Namespace)
}

// waypointPorts returns svc with a port for HBONE, which the service of a waypoint need not list.
func (r *router) waypointPorts(svc *discovery.Service, port uint16) *discovery.Service {
	if _, ok := svc.Ports[port]; ok {
		return svc
	}
	with := *svc
	with.Ports = map[uint16]uint16{port: port}
	return &with
}

// isWaypoint reports whether w is one of those that answer for gw.
func (r *router) isWaypoint(w *discovery.Workload, gw *discovery.Gateway) bool {
	svc, single := r.gateway(w, gw)
	if svc == nil {
		return single != nil && single.UID == w.UID
	}
	_, ok := w.Services[svc.Key()]
	return ok
}
