// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"

	"github.com/sluice-mesh/sluice/ztunnel/discovery"
	"github.com/sluice-mesh/sluice/ztunnel/hbone"
	"github.com/sluice-mesh/sluice/ztunnel/identity"
	"github.com/sluice-mesh/sluice/ztunnel/policy"
	"github.com/sluice-mesh/sluice/ztunnel/telemetry"
)

// hbone carries one HBONE connection of a peer; each of its streams is a connection to the pod ([podProxy.stream]).
func (p *podProxy) hbone(ctx context.Context, conn *net.TCPConn, _ *lease) {
	src, local := addrPort(conn.RemoteAddr()), addrPort(conn.LocalAddr())
	var err error
	if isHidden(local.Addr()) {
		err = refuse(VerdictHiddenAddress, "connection to the hidden listener address %s", local)
	} else if served := p.server.ServeConn(ctx, conn); errors.Is(served, errLimit) {
		p.refuseForLimit(telemetry.Inbound, src, local, served)
	} else if errors.Is(served, hbone.ErrTLS) {
		err = handshakeRefusal(served)
	}
	abort(conn) // does nothing if ServeConn has closed it
	if err != nil {
		// Otherwise there were streams, or nothing, and it was theirs to tell.
		ctx, f := p.begin(ctx, telemetry.Inbound, p.info.UID, src, local)
		f.end(ctx, err)
	}
}

// handshakeRefusal tells what the pod's own end could not do from what is wrong with the peer.
func handshakeRefusal(err error) error {
	var own *refusal
	var unavailable *identity.UnavailableError
	switch {
	case errors.As(err, &own):
		return err
	case errors.As(err, &unavailable):
		return refuse(VerdictIdentity, "%w", err).flagged(telemetry.FlagIdentity)
	}
	return refuse(VerdictTLS, "%w", err).flagged(telemetry.FlagTLS)
}

// stream is the life of a connection that a peer makes over HBONE. The peer learns of a refusal by its status.
func (p *podProxy) stream(_ context.Context, s *hbone.ServerStream) {
	src, dst := addrPort(s.RemoteAddr()), addrPort(s.LocalAddr())
	l, err := p.account.take(use{1, fdsStream})
	if err != nil {
		_ = s.Reject(statusUnavailable) // a peer that is gone needs no status
		p.refuseForLimit(telemetry.Inbound, src, dst, err)
		return
	}
	defer l.release()
	// Not with the context of the HBONE connection: its end would hide why it ended.
	ctx, f := p.begin(p.ctx, telemetry.Inbound, p.info.UID, src, dst)
	err = p.carryStream(ctx, f, s)
	f.end(ctx, err)
}

// carryStream: who is the source, where to, may it, deliver, and only then accept and copy.
func (p *podProxy) carryStream(ctx context.Context, f *flow, s *hbone.ServerStream) error {
	src, local := f.access.Src.Addr, f.access.Dst.Addr
	id, _ := identity.PeerIdentity(s.ConnState())
	self, err := p.self(ctx)
	if err != nil {
		return p.rejected(s, &rejection{err.(*refusal), statusUnavailable})
	}
	svc := p.forwardedService(self, s.Header("forwarded"))
	tell := func(series func(telemetry.Labels) *telemetry.Series, peer *discovery.Workload) {
		f.knownFrom(series, VerdictMTLS, inboundLabels(peer, self, svc, &id), func(a *telemetry.Access) {
			a.HBONEAddr = s.Authority()
			describeInbound(a, peer, self, svc)
			a.Src.Identity, a.Dst.Identity = id.String(), self.Identity().String()
		})
	}
	foreign, told := isForeign(s.Headers(), p.Network), false
	if !foreign {
		tell(p.Metrics.Series, p.Store.WorkloadByAddr(p.Network, src.Addr()))
	}
	defer func() {
		if foreign && !told { // refused: what it says of itself is not heard
			tell(p.Metrics.Series, nil)
		}
	}()
	if err := p.revoked(s.ConnState()); err != nil {
		p.server.Cut(p.revoked) // this connection, which no cut of before has seen; a new one shows another certificate
		return p.rejected(s, &rejection{refuse(VerdictRevoked, "%w", err), statusUnauthorized})
	}
	to, err := p.router.inbound(self, local.Addr(), s.Authority())
	if err == nil {
		err = p.offers(to)
	}
	if err != nil {
		return p.rejected(s, err)
	}
	input := policy.Input{Source: policy.Identity(id), SourceIP: src.Addr(), Dest: to.to}
	if err := f.check(func() error { return p.allowed(self, input) }); err != nil {
		return p.rejected(s, &rejection{err.(*refusal), statusUnauthorized})
	}
	if foreign {
		tell(p.Metrics.SeriesByWord, p.fromWord(s.Header("baggage")))
		told = true
	}
	app, err := p.connectApp(ctx, src.Addr(), to)
	if err != nil {
		return p.rejected(s, &rejection{err.(*refusal), statusUnavailable})
	}
	stream, err := s.Accept(p.answerHeaders(self))
	if err != nil {
		abort(app)
		return err
	}
	if err := p.introduce(app, to, src, id); err != nil {
		stream.Reset(hbone.CodeConnect)
		abort(app)
		return err
	}
	return f.splice(ctx, app, stream)
}

// rejected tells the peer, and returns err for the log.
func (p *podProxy) rejected(s *hbone.ServerStream, err error) error {
	status := statusUnavailable
	var r *rejection
	if errors.As(err, &r) {
		status = r.status
	}
	_ = s.Reject(status) // a peer that is gone needs no status
	return err
}

// plaintext is the life of a connection to the pod from somebody who speaks no HBONE. A refusal reaches the client as a
// reset.
func (p *podProxy) plaintext(ctx context.Context, conn *net.TCPConn, l *lease) {
	to, err := originalDst(conn, p.Redirected)
	from := addrPort(conn.RemoteAddr())
	defer p.clients.add(client{from, to})()
	ctx, f := p.begin(ctx, telemetry.Inbound, p.info.UID, from, to)
	if err == nil {
		f.lease = l
		err = p.carryPlaintext(ctx, f, conn)
	}
	abort(conn) // does nothing to a connection that was carried to its end
	f.end(ctx, err)
}

// carryPlaintext: where to, may it without an identity, deliver, copy.
func (p *podProxy) carryPlaintext(ctx context.Context, f *flow, conn *net.TCPConn) error {
	src, to := f.access.Src.Addr, f.access.Dst.Addr
	if isHidden(to.Addr()) {
		return refuse(VerdictHiddenAddress, "connection to the hidden listener address %s", to)
	}
	self, err := p.self(ctx)
	if err != nil {
		return err
	}
	peer := p.Store.WorkloadByAddr(p.Network, src.Addr())
	f.known(VerdictPlaintext, inboundLabels(peer, self, nil, nil), func(a *telemetry.Access) { describeInbound(a, peer, self, nil) })
	if p.router.isReserved(to.Port()) {
		return refuse(VerdictReservedPort, "port %d is ztunnel's own", to.Port())
	}
	input := policy.Input{SourceIP: src.Addr(), Dest: to}
	if err := f.check(func() error { return p.allowed(self, input) }); err != nil {
		return err
	}
	if err := f.lease.grow(fdsPlain); err != nil {
		return refuse(VerdictLimit, "%w", err)
	}
	app, err := p.deliver(ctx, src.Addr(), to)
	if err != nil {
		return err
	}
	return f.relay(ctx, app, conn)
}

// deliver connects to the application as if the client did.
func (p *podProxy) deliver(ctx context.Context, from netip.Addr, to netip.AddrPort) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	avoid := func(source netip.AddrPort) bool { return p.clients.has(client{source, to}) }
	app, err := p.network.Deliver(ctx, from, to, avoid)
	if err != nil {
		return nil, refuse(connectVerdict(err), "deliver: %w", err)
	}
	return app, nil
}

// allowed asks the policies that apply to self now: both they and self's list of them may have changed since.
func (p *podProxy) allowed(self *discovery.Workload, input policy.Input) error {
	if now := p.Store.WorkloadByUID(self.UID); now != nil {
		self = now
	}
	d := policy.Decide(input, p.Store.PoliciesFor(self))
	p.logDecision(d, input)
	if d.Allow {
		return nil
	}
	r := refuse(VerdictPolicy, "connection closed due to policy rejection: %s", d.Reason).flagged(telemetry.FlagDeny)
	r.policy = d.Policy
	return r
}

// forwardedService is the service the client asked for by its own word, believed only for services that self is part of:
// it is a label, no more.
func (p *podProxy) forwardedService(self *discovery.Workload, header string) *discovery.Service {
	host := forwardedHost(header)
	if host == "" {
		return nil
	}
	for key := range self.Services {
		if key.Hostname == host {
			return p.Store.ServiceByHostname(key.Namespace, key.Hostname, self.Namespace)
		}
	}
	return nil
}

// inboundLabels: id is nil for a plaintext connection, whose client may be known by address but proved nothing.
func inboundLabels(peer, self *discovery.Workload, svc *discovery.Service, id *identity.Identity) telemetry.Labels {
	l := labelsOf(peer, self, svc, id != nil)
	if id != nil {
		l.Source.Principal = id.String()
	}
	return l
}

func describeInbound(a *telemetry.Access, peer, self *discovery.Workload, svc *discovery.Service) {
	if peer != nil {
		describeEnd(&a.Src, peer, false)
	}
	describeEnd(&a.Dst, self, false)
	if svc != nil {
		a.Service = svc.Hostname
	}
}
