// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"crypto/tls"
	"net"
)

// ConnectOver sends req on a connection of its own over raw, which it owns, and returns once the peer has answered 200.
// raw may be a [Stream]: that is double HBONE. The connection takes no second request and ends with its stream, or with
// the pool. The caller owns the Stream.
//
// cfg verifies the peer, as in [Pool.Connect]. Errors: [*StatusError] for an answer other than 200, one wrapping
// [ErrTLS], [ErrPoolClosed], those of a lost connection, or the cause of ctx.
func (p *Pool) ConnectOver(ctx context.Context, raw net.Conn, cfg *tls.Config, req ConnectRequest) (*Stream, *ConnectResponse, error) {
	if !p.begin() {
		_ = raw.Close()
		return nil, nil, ErrPoolClosed
	}
	pc, err := p.shakeOver(ctx, raw, cfg)
	if err != nil {
		p.conns.Done()
		return nil, nil, err
	}
	p.mu.Lock()
	p.all[pc] = struct{}{}
	p.mu.Unlock()
	go func() {
		defer p.conns.Done()
		p.runConn(pc)
	}()
	return p.connectOn(ctx, pc, req)
}

// begin counts a connection, unless the pool is closed.
func (p *Pool) begin() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.conns.Add(1)
	}
	return !p.closed
}

// shakeOver returns a connection for one stream, which counts as its already. On error raw is closed.
func (p *Pool) shakeOver(ctx context.Context, raw net.Conn, cfg *tls.Config) (*pooled, error) {
	// Once there is a connection the pool's end is runConn's business.
	defer context.AfterFunc(p.ctx, func() { _ = raw.Close() })()
	pc := &pooled{active: 1, retired: true}
	c, err := newClientConn(ctx, raw, cfg, p.connConfig(pc))
	pc.c = c
	return pc, err
}
