// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"crypto/tls"
)

// watchRevocations cuts, for as long as the pod is served, the HBONE connections of peers whose certificate a change of
// the lists revokes: in the pool, with streams or without, and those that peers made.
//
// A connection whose handshake races with a change is missed here, and found and cut with its first stream.
func (p *podProxy) watchRevocations() {
	p.stopRevocations = p.CRL.OnChange(p.cutRevoked)
	context.AfterFunc(p.ctx, p.stopRevocations)
}

func (p *podProxy) cutRevoked() {
	p.pool.Cut(p.revoked)
	p.server.Cut(p.revoked)
}

// revoked returns an [*identity.RevokedError] if the peer may not go on.
func (p *podProxy) revoked(state tls.ConnectionState) error {
	return p.CRL.Check(state.PeerCertificates)
}
