// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/sluice-mesh/sluice/ztunnel/discovery"
	"github.com/sluice-mesh/sluice/ztunnel/hbone"
	"github.com/sluice-mesh/sluice/ztunnel/identity"
	"github.com/sluice-mesh/sluice/ztunnel/telemetry"
)

// networkHeader names the client's network to the far end; only on the inner request.
const networkHeader = "x-forwarded-network"

// throughGateway routes a connection of src to the address to, which is svc's, to w on another network: in double HBONE
// through that network's gateway, ambient section 4.9. The far end chooses an endpoint again, by the service's name.
func (r *router) throughGateway(src, w *discovery.Workload, svc *discovery.Service, to netip.AddrPort) (*route, error) {
	switch {
	case svc == nil:
		return nil, refuse(VerdictOtherNetwork, "%s is on network %q: over there only services can be connected to", w.UID, w.Network)
	case w.NetworkGateway == nil:
		return nil, refuse(VerdictNoAddress, "no valid destination: %s is on network %q, and has no network gateway", w.UID, w.Network)
	case len(svc.SubjectAltNames) == 0:
		return nil, refuse(VerdictOtherNetwork, "service %s lists no identities (subject_alt_names) by which %s, on network %q, could be known", svc.Key(), w.UID, w.Network)
	}
	picked, gateway, err := r.resolveGateway(src, w.NetworkGateway, to.Addr(), forGateway)
	if err != nil {
		return nil, refuse(VerdictNoAddress, "no valid destination: gateway of network %q: %w", w.Network, err)
	}
	return &route{
		carried: VerdictMTLS, dial: picked.addr,
		authority: net.JoinHostPort(svc.Hostname, strconv.Itoa(int(to.Port()))),
		expected:  expected(picked.workload, gateway), inner: svc.SubjectAltNames,
		workload: picked.workload, service: svc,
	}, nil
}

// carryFar carries a connection through another network's gateway. Who serves it is known only by the far end's word, so
// the two ends are told once it has answered.
func (p *podProxy) carryFar(ctx context.Context, f *flow, app *net.TCPConn, src *discovery.Workload, route *route) error {
	stream, answer, err := p.connectHBONE(ctx, src, addrPort(app.RemoteAddr()), route)
	labels := labelsOf(src, route.workload, route.service, true)
	series := p.Metrics.Series
	if err == nil {
		series = p.Metrics.SeriesByWord
		id, _ := identity.PeerIdentity(stream.ConnState())
		labels.Destination = peerOf(p.fromWord(answer.Header("baggage")), false)
		labels.Destination.Principal = id.String()
	}
	f.knownFrom(series, route.carried, labels, func(a *telemetry.Access) {
		describeRoute(a, src, route)
		if err == nil {
			far := labels.Destination
			a.Dst.Workload, a.Dst.Namespace, a.Dst.Cluster, a.Dst.Identity = far.Workload, far.Namespace, far.Cluster, far.Principal
		}
	})
	if err != nil {
		return err
	}
	return f.splice(ctx, app, stream)
}

// isForeign reports whether a request came from another network. Then the peer's address is a gateway's, and who sent the
// request is known by the client's own word only.
func isForeign(headers []hbone.Header, network string) bool {
	return slices.ContainsFunc(headers, func(h hbone.Header) bool {
		return h.Name == networkHeader && h.Value != network // "" is a network too
	})
}

// fromWord is what a peer says of itself, for labels; nil if nothing, or if it is not to be read (ambient section 4.2).
func (p *podProxy) fromWord(baggage string) *discovery.Workload {
	if p.NoResponseBaggage {
		return nil
	}
	return fromBaggage(baggage)
}
