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
	picked, waypoint, err := r.resolveGateway(src, gw, to.Addr(), forWaypoint)
	if err != nil {
		return nil, refuse(VerdictWaypoint, "waypoint %w", err)
	}
	if picked.workload.Network != r.network {
		return r.throughGateway(src, picked.workload, svc, to)
	}
	return &route{
		carried: VerdictMTLS, dial: picked.addr, authority: to.String(), waypoint: true,
		expected: expected(picked.workload, waypoint), workload: picked.workload, service: svc,
	}, nil
}

// resolveGateway finds who answers for gw, and where; the service is nil if gw is a workload. family is an address of the
// family to prefer.
func (r *router) resolveGateway(src *discovery.Workload, gw *discovery.Gateway, family netip.Addr, why purpose) (*endpoint, *discovery.Service, error) {
	if gw.Address.Addr.IsValid() {
		family = gw.Address.Addr
	}
	svc, w := r.gateway(src, gw)
	if svc != nil {
		picked, err := r.balance(src, svc, netip.AddrPortFrom(family, gw.Port), why)
		if err != nil {
			return nil, nil, refuse(VerdictNoEndpoint, "%s: %w", gw, err)
		}
		return picked, svc, nil
	}
	if w == nil {
		return nil, nil, refuse(VerdictNoEndpoint, "%s is unknown", gw)
	}
	addr, ok := r.addressFor(w, discovery.FamiliesAutomatic, family, why)
	if !ok {
		return nil, nil, refuse(VerdictNoAddress, "%s: workload %s has neither address nor host name", gw, w.UID)
	}
	return &endpoint{w, netip.AddrPortFrom(addr, gw.Port)}, nil, nil
}

// gateway looks up what gw refers to. By host name it is a certain service, whoever may use it; by address it is whatever
// src would find there.
func (r *router) gateway(src *discovery.Workload, gw *discovery.Gateway) (*discovery.Service, *discovery.Workload) {
	if !gw.Address.Addr.IsValid() {
		if svc := r.store.Service(gw.Hostname); svc != nil {
			return svc, nil
		}
		return nil, r.store.WorkloadByHostname(gw.Hostname.Hostname, gw.Hostname.Namespace)
	}
	if svc := r.store.ServiceByVIP(gw.Address.Network, gw.Address.Addr, src.Namespace); svc != nil {
		return svc, nil
	}
	if services := r.store.ServicesByVIP(gw.Address.Network, gw.Address.Addr); len(services) > 0 {
		return services[0], nil
	}
	return nil, r.store.WorkloadByAddr(gw.Address.Network, gw.Address.Addr)
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
