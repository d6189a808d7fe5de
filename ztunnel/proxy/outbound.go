// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/sluice-mesh/sluice/ztunnel/discovery"
	"github.com/sluice-mesh/sluice/ztunnel/hbone"
	"github.com/sluice-mesh/sluice/ztunnel/identity"
	"github.com/sluice-mesh/sluice/ztunnel/telemetry"
)

// outbound is the life of a connection that the pod makes. A refusal reaches the application as a reset.
func (p *podProxy) outbound(ctx context.Context, app *net.TCPConn, l *lease) {
	to, err := originalDst(app, p.Redirected)
	ctx, f := p.begin(ctx, telemetry.Outbound, p.info.UID, addrPort(app.RemoteAddr()), to)
	if err == nil {
		f.lease = l
		err = p.carryOutbound(ctx, f, app)
	}
	abort(app) // does nothing to a connection that was carried to its end
	f.end(ctx, err)
}

// carryOutbound: who is the source, where to, and then copy. It returns when the connection has ended.
func (p *podProxy) carryOutbound(ctx context.Context, f *flow, app *net.TCPConn) error {
	to := f.access.Dst.Addr
	if isHidden(to.Addr()) {
		return refuse(VerdictHiddenAddress, "connection to the hidden listener address %s", to)
	}
	src, err := p.self(ctx)
	if err != nil {
		return err
	}
	route, err := p.router.outbound(src, to)
	if err == nil {
		err = p.resolve(ctx, src, route, to.Addr())
	}
	if err != nil {
		f.known("", labelsOf(src, nil, p.serviceAt(src, to), false), func(a *telemetry.Access) { describeSource(a, src, false) })
		return err
	}
	if route.inner != nil {
		return p.carryFar(ctx, f, app, src, route)
	}
	f.known(route.carried, labelsOf(src, route.workload, route.service, route.carried == VerdictMTLS), func(a *telemetry.Access) {
		describeRoute(a, src, route)
	})
	if route.carried == VerdictLocal && p.router.isReserved(route.dial.Port()) {
		return refuse(VerdictReservedPort, "port %d is ztunnel's own", route.dial.Port()) // it would come back here
	}
	if route.carried != VerdictMTLS {
		return p.carryPlain(ctx, f, app, route)
	}
	stream, _, err := p.connectHBONE(ctx, src, addrPort(app.RemoteAddr()), route)
	if err != nil {
		return err
	}
	return f.splice(ctx, app, stream)
}

func (p *podProxy) carryPlain(ctx context.Context, f *flow, app *net.TCPConn, route *route) error {
	if err := f.lease.grow(fdsPlain); err != nil {
		return refuse(VerdictLimit, "%w", err)
	}
	dialCtx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	upstream, err := p.network.Dial(dialCtx, netip.Addr{}, route.dial)
	if err != nil {
		return refuse(connectVerdict(err), "%w", err)
	}
	return f.relay(ctx, app, upstream)
}

// connectHBONE opens a stream to the route's authority, on a connection shared with other connections of this pod. Beyond
// another network's gateway a second connection is made inside it, for this stream alone.
func (p *podProxy) connectHBONE(ctx context.Context, src *discovery.Workload, from netip.AddrPort, route *route) (*hbone.Stream, *hbone.ConnectResponse, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, answerTimeout, errNoAnswer)
	defer cancel()
	headers := connectHeaders(from, src, route.service)
	stream, answer, err := p.unrevoked(p.connectPooled(ctx, src, from, route, headers))
	if err == nil && route.inner != nil {
		stream, answer, err = p.unrevoked(p.pool.ConnectOver(ctx, stream, p.ClientTLS(src.Identity(), route.inner), hbone.ConnectRequest{
			Authority: route.authority, Headers: append(headers, hbone.Header{Name: networkHeader, Value: p.Network}),
		}))
	}
	if err != nil && errors.Is(context.Cause(ctx), errNoAnswer) {
		return nil, nil, refuse(VerdictPeer, "connect to %s: %w", route.authority, errNoAnswer)
	}
	if err != nil {
		return nil, nil, connectRefusal(err, route)
	}
	return stream, answer, nil
}

// unrevoked passes on a stream whose peer may go on.
func (p *podProxy) unrevoked(s *hbone.Stream, answer *hbone.ConnectResponse, err error) (*hbone.Stream, *hbone.ConnectResponse, error) {
	if err != nil {
		return nil, nil, err
	}
	if err := p.revoked(s.ConnState()); err != nil {
		s.Reset(hbone.CodeConnect)
		p.pool.Cut(p.revoked) // the peer may have another certificate by now, which a new connection shows
		return nil, nil, err
	}
	return s, answer, nil
}

func (p *podProxy) connectPooled(ctx context.Context, src *discovery.Workload, from netip.AddrPort, route *route, headers []hbone.Header) (*hbone.Stream, *hbone.ConnectResponse, error) {
	id := src.Identity()
	own := from.Addr()
	if !src.Owns(own) || own.Is4() != route.dial.Addr().Is4() {
		own = netip.Addr{} // a container behind the pod, or an address that the control plane does not know
	}
	key := hbone.Key{
		Source: id.String(), Expected: strings.Join(route.expected, " "), Addr: route.dial, SourceIP: from.Addr(),
	}
	dial := func(ctx context.Context) (net.Conn, error) { return p.dialHBONE(ctx, own, route.dial) }
	return p.pool.Connect(ctx, key, dial, p.ClientTLS(id, route.expected), hbone.ConnectRequest{
		Authority: route.authority, Headers: headers,
	})
}

// answerTimeout bounds a CONNECT request, from the wait for a connection to the peer's answer. The peer may wait for its
// workload, then for its application.
const answerTimeout = connectTimeout + selfTimeout + connectTimeout

var errNoAnswer = fmt.Errorf("no answer within %s", answerTimeout)

// connectRefusal says which step of an HBONE connect failed.
func connectRefusal(err error, route *route) error {
	var status *hbone.StatusError
	var unavailable *identity.UnavailableError
	var timeout net.Error
	switch {
	case errors.Is(err, context.Canceled):
		return err // cut: the cause is known to whoever cut
	case errors.Is(err, errLimit), outOfDescriptors(err):
		return refuse(VerdictLimit, "connect to %s: %w", route.dial, err)
	case errors.As(err, &status) && status.Code == 401:
		return refuse(VerdictPeer, "refused by the policies of %s: %w", route.authority, err).flagged(telemetry.FlagDeny)
	case errors.As(err, &status):
		return refuse(VerdictPeer, "refused by %s: %w", route.dial, err)
	case errors.As(err, &unavailable):
		return refuse(VerdictIdentity, "%w", err).flagged(telemetry.FlagIdentity)
	case errors.Is(err, hbone.ErrTLS):
		return refuse(VerdictTLS, "connect to %s: %w", route.dial, err).flagged(telemetry.FlagTLS)
	case errors.As(err, &timeout) && timeout.Timeout():
		return refuse(VerdictConnect, "connect to %s: %w; a network policy may block port %d", route.dial, err, route.dial.Port()).
			flagged(telemetry.FlagNetworkPolicy)
	}
	return refuse(VerdictConnect, "connect to %s: %w", route.dial, err)
}

func describeRoute(a *telemetry.Access, src *discovery.Workload, r *route) {
	mtls := r.carried == VerdictMTLS
	describeSource(a, src, mtls)
	a.Dst.Addr = r.dial
	a.HBONEAddr = r.authority
	if r.workload != nil {
		describeEnd(&a.Dst, r.workload, mtls)
	}
	if r.service != nil {
		a.Service = r.service.Hostname
	}
}

func describeSource(a *telemetry.Access, src *discovery.Workload, mtls bool) {
	describeEnd(&a.Src, src, mtls)
}

func describeEnd(e *telemetry.Endpoint, w *discovery.Workload, mtls bool) {
	e.Workload, e.Namespace, e.Cluster = w.Name, w.Namespace, w.ClusterID
	if mtls {
		e.Identity = w.Identity().String()
	}
}
