// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net/netip"

	"github.com/sluice-mesh/sluice/ztunnel/discovery"
	"github.com/sluice-mesh/sluice/ztunnel/hbone"
)

// HTTP status codes of refused CONNECT requests, ambient section 4.3.
const (
	statusBadRequest   = 400
	statusUnauthorized = 401 // policy; not 403
	statusUnavailable  = 503
)

// rejection is a refusal with the status that the peer is told.
type rejection struct {
	*refusal
	status int
}

func (r *rejection) Unwrap() error { return r.refusal }

func reject(status int, v Verdict, format string, args ...any) *rejection {
	return &rejection{refuse(v, format, args...), status}
}

// delivery is where a CONNECT request goes.
type delivery struct {
	// to is the application, at the address the request came to. Policies are asked about it.
	to netip.AddrPort
	// asked is what the client wanted, header whether the application is told of it in a PROXY protocol header.
	asked  netip.AddrPort
	header bool
}

// inbound decides where a CONNECT request that arrived for self on the address local is delivered. Ambient section 4.3,
// steps 2 to 7.
//
// The host of the authority must be self, or something self is the waypoint of; it is always local that is connected to.
func (r *router) inbound(self *discovery.Workload, local netip.Addr, authority string) (*delivery, error) {
	host, ip, port, err := hbone.ParseAuthority(authority)
	if err != nil {
		return nil, reject(statusBadRequest, VerdictAuthority, "%w", err)
	}
	d := &delivery{asked: netip.AddrPortFrom(ip, port)}
	tunnel := self.AppTunnel
	switch {
	case !ip.IsValid():
		var svc *discovery.Service
		if svc, port, err = r.hostPort(self, host, port); err != nil {
			return nil, err
		}
		d.asked = netip.AddrPortFrom(r.addressOf(svc), d.asked.Port())
	case ip != local && tunnel == nil && !r.answersFor(self, local, ip):
		return nil, reject(statusBadRequest, VerdictAddressMismatch, "ip mismatch: %s != %s", ip, local)
	}
	if r.isReserved(port) {
		return nil, reject(statusUnavailable, VerdictReservedPort, "port %d is ztunnel's own", port)
	}
	if tunnel != nil {
		return r.tunnelled(d, tunnel, authority, netip.AddrPortFrom(local, port))
	}
	d.to = netip.AddrPortFrom(local, port)
	return d, nil
}

// hostPort finds a service by name, and maps a port of it to self's own.
func (r *router) hostPort(self *discovery.Workload, host string, port uint16) (*discovery.Service, uint16, error) {
	svc := r.store.ServiceByHostname("", host, self.Namespace)
	if svc == nil {
		return nil, 0, reject(statusUnavailable, VerdictAuthority, "authority %q: unknown service", host)
	}
	endpoint := discovery.Endpoint{Workload: self, Ports: self.Services[svc.Key()]}
	target, ok := endpoint.TargetPort(svc, port)
	if !ok {
		return nil, 0, reject(statusUnavailable, VerdictAuthority, "authority %q: service %s has no port %d here", host, svc.Key(), port)
	}
	return svc, target, nil
}

// answersFor reports whether ip is a workload or service whose waypoint is self, at the address local.
func (r *router) answersFor(self *discovery.Workload, local, ip netip.Addr) bool {
	if w := r.store.WorkloadByAddr(r.network, ip); w != nil {
		return w.Waypoint != nil && r.isWaypointAt(self, w.Waypoint, local)
	}
	// Also services that self's namespace may not use: their owner chose self to be in front of them.
	for _, svc := range r.store.ServicesByVIP(r.network, ip) {
		if svc.Waypoint != nil && r.isWaypointAt(self, svc.Waypoint, local) {
			return true
		}
		for i := range svc.WeightedWaypoints {
			if r.isWaypointAt(self, &svc.WeightedWaypoints[i].Gateway, local) {
				return true
			}
		}
	}
	return false
}

func (r *router) isWaypointAt(self *discovery.Workload, gw *discovery.Gateway, local netip.Addr) bool {
	return self.Owns(local) && r.isWaypoint(self, gw)
}
