// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"crypto/tls"
)

var errDialTimeout error = &timeoutError{"no connection in time"}

// dialLocked starts the one dial of a key. It runs under a context of its own, which ends when nobody waits any more.
func (p *Pool) dialLocked(h *host, key Key, dial DialFunc, cfg *tls.Config) {
	ctx, cancel := context.WithCancelCause(p.ctx)
	call := &dialCall{done: make(chan struct{}), cancel: cancel}
	h.dial = call
	p.conns.Add(1)
	go p.runDial(ctx, call, key, dial, cfg)
}

// runDial dials, tells the waiters, and becomes the connection's read loop.
func (p *Pool) runDial(ctx context.Context, call *dialCall, key Key, dial DialFunc, cfg *tls.Config) {
	defer p.conns.Done()
	defer call.cancel(nil)
	ctx, stop := context.WithTimeoutCause(ctx, p.cfg.DialTimeout, errDialTimeout)
	defer stop()
	pc, err := p.newPooled(ctx, key, dial, cfg)
	p.mu.Lock()
	h := p.hostLocked(key)
	if h.dial == call {
		h.dial = nil
	}
	if err == nil {
		p.all[pc] = struct{}{}
		h.conns = append(h.conns, pc)
		p.restLocked(pc) // for good, if no waiter is left
	} else if len(h.conns) == 0 && h.dial == nil {
		delete(p.hosts, key)
	}
	closed := p.closed
	if closed && err == nil {
		p.removeLocked(pc)
	}
	call.err = err
	close(call.done)
	p.mu.Unlock()
	if err != nil {
		return
	}
	if closed {
		pc.c.retire()
	}
	p.runConn(pc)
}

func (p *Pool) newPooled(ctx context.Context, key Key, dial DialFunc, cfg *tls.Config) (*pooled, error) {
	raw, err := dial(ctx)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, &opError{phase: ErrDial, err: err}
	}
	pc := &pooled{key: key}
	pc.c, err = newClientConn(ctx, raw, cfg, p.connConfig(pc))
	if err != nil {
		return nil, err
	}
	return pc, nil
}

// runConn reads the connection until it ends.
func (p *Pool) runConn(pc *pooled) {
	stop := context.AfterFunc(p.ctx, func() { pc.c.kill(context.Cause(p.ctx)) })
	defer stop()
	err := pc.c.run()
	p.mu.Lock()
	p.removeLocked(pc)
	delete(p.all, pc)
	p.mu.Unlock()
	if err != nil {
		p.cfg.Logger.Debug("hbone connection ended", "peer", pc.key.Addr, "err", err)
	}
}

// abandon is called by a waiter that gives up. A dial that nobody waits for is cancelled, and nobody may join it.
func (p *Pool) abandon(key Key, call *dialCall) {
	p.mu.Lock()
	defer p.mu.Unlock()
	call.waiters--
	if call.waiters > 0 {
		return
	}
	call.cancel(context.Canceled)
	if h := p.hosts[key]; h != nil && h.dial == call {
		h.dial = nil
	}
}

// connConfig is that of the pool's connections, of which pc is to be one.
func (p *Pool) connConfig(pc *pooled) connConfig {
	return connConfig{
		client: true, pingInterval: p.cfg.PingInterval, pingTimeout: p.cfg.PingTimeout, windows: p.cfg.Windows,
		memory: p.cfg.Memory,
		stats:  &p.stats, ended: func() { p.streamEnded(pc) },
	}
}
