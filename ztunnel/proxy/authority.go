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

// inbound decides where a CONNECT request that arrived for self on the address local is delivered. Ambient section 4.3,
// steps 2 to 7.
//
// The host of the authority must be self, or something self is the waypoint of; it is always local that is connected to.
func (r *router) inbound(self *discovery.Workload, local netip.Addr, authority string) (netip.AddrPort, error) {
	host, ip, port, err := hbone.ParseAuthority(authority)
	if err != nil {
		return netip.AddrPort{}, reject(statusBadRequest, VerdictAuthority, "%w", err)
	}
	tunnel := self.AppTunnel
	switch {
	case !ip.IsValid():
		if port, err = r.hostPort(self, host, port); err != nil {
			return netip.AddrPort{}, err
		}
	case ip != local && tunnel == nil && !r.answersFor(self, local, ip):
		return netip.AddrPort{}, reject(statusBadRequest, VerdictAddressMismatch, "ip mismatch: %s != %s", ip, local)
	}
	if tunnel != nil && tunnel.Proxy {
		return netip.AddrPort{}, reject(statusUnavailable, VerdictAppTunnel, "PROXY protocol to %s is not supported yet", self.UID)
	}
	if tunnel != nil && tunnel.Port != 0 {
		port = tunnel.Port
	}
	if r.isReserved(port) {
		return netip.AddrPort{}, reject(statusUnavailable, VerdictReservedPort, "port %d is ztunnel's own", port)
	}
	return netip.AddrPortFrom(local, port), nil
}

// hostPort maps a port of a service named by host to self's own.
func (r *router) hostPort(self *discovery.Workload, host string, port uint16) (uint16, error) {
	svc := r.store.ServiceByHostname("", host, self.Namespace)
	if svc == nil {
		return 0, reject(statusUnavailable, VerdictAuthority, "authority %q: unknown service", host)
	}
	endpoint := discovery.Endpoint{Workload: self, Ports: self.Services[svc.Key()]}
	target, ok := endpoint.TargetPort(svc, port)
	if !ok {
		return 0, reject(statusUnavailable, VerdictAuthority, "authority %q: service %s has no port %d here", host, svc.Key(), port)
	}
	return target, nil
}

// answersFor reports whether ip is a workload or service whose waypoint is self, at the address local.
func (r *router) answersFor(self *discovery.Workload, local, ip netip.Addr) bool {
	var gw *discovery.Gateway
	if w := r.store.WorkloadByAddr(r.network, ip); w != nil {
		gw = w.Waypoint
	} else if svc := r.store.ServiceByVIP(r.network, ip, self.Namespace); svc != nil {
		gw = svc.Waypoint
		for i := range svc.WeightedWaypoints {
			if r.isWaypointAt(self, &svc.WeightedWaypoints[i].Gateway, local) {
				return true
			}
		}
	}
	return gw != nil && r.isWaypointAt(self, gw, local)
}

func (r *router) isWaypointAt(self *discovery.Workload, gw *discovery.Gateway, local netip.Addr) bool {
	return self.Owns(local) && r.isWaypoint(self, gw)
}
