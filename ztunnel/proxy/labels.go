// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net/netip"

	"github.com/sluice-mesh/sluice/ztunnel/discovery"
	"github.com/sluice-mesh/sluice/ztunnel/telemetry"
)

// labelsOf names a connection for metrics. src, dst and svc may be nil: unknown.
func labelsOf(src, dst *discovery.Workload, svc *discovery.Service, mtls bool) telemetry.Labels {
	l := telemetry.Labels{Source: peerOf(src, mtls), Destination: peerOf(dst, mtls), MTLS: mtls}
	if svc != nil {
		l.Service, l.ServiceName, l.ServiceNamespace = svc.Hostname, svc.Name, svc.Namespace
	}
	return l
}

func peerOf(w *discovery.Workload, mtls bool) telemetry.Peer {
	if w == nil {
		return telemetry.Peer{}
	}
	peer := telemetry.Peer{
		Workload: w.WorkloadName, Namespace: w.Namespace, Cluster: w.ClusterID,
		CanonicalService: w.CanonicalName, CanonicalRevision: w.CanonicalRevision,
		Region: w.Locality.Region, Zone: w.Locality.Zone,
	}
	if mtls {
		peer.Principal = w.Identity().String()
	}
	return peer
}

// serviceAt is the service that a client asked for, nil if to is no VIP.
func (p *podProxy) serviceAt(src *discovery.Workload, to netip.AddrPort) *discovery.Service {
	return p.Store.ServiceByVIP(p.Network, to.Addr(), src.Namespace)
}
