// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/sluice-mesh/sluice/ztunnel/hbone"
	"github.com/sluice-mesh/sluice/ztunnel/inpod"
	"github.com/sluice-mesh/sluice/ztunnel/telemetry"
)

// podProxy is one pod being served.
type podProxy struct {
	*Proxy
	info    inpod.Info
	network network
	ports   []uint16 // that peers may reach over HBONE; none for all
	log     *slog.Logger
	pool    *hbone.Pool
	server  *hbone.Server

	// ctx ends, with the reason as its cause, when every connection is to be cut.
	ctx    context.Context
	cancel context.CancelCauseFunc

	stopRevocations func()

	account    account
	refusals   refusals
	handshakes handshakes

	clients clients // whose connections are carried in plaintext

	mu        sync.Mutex
	listeners *inpod.Listeners
	draining  bool

	accepting sync.WaitGroup // accept loops; only they add to carrying
	carrying  sync.WaitGroup // connections
}

// Replace implements [inpod.Proxy].
func (p *podProxy) Replace(l *inpod.Listeners) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.draining {
		l.Close()
		return
	}
	old := p.listeners
	p.listeners = l
	for _, ln := range l.Outbound {
		p.accepting.Go(func() { p.acceptLoop(acceptor{ln, telemetry.Outbound, use{1, fdsAccepted}, p.outbound, nil}) })
	}
	for _, ln := range l.Inbound {
		p.accepting.Go(func() { p.acceptLoop(acceptor{ln, telemetry.Inbound, use{1, fdsAccepted}, p.plaintext, nil}) })
	}
	for _, ln := range l.HBONE {
		p.accepting.Go(func() { p.acceptLoop(acceptor{ln, telemetry.Inbound, use{0, fdsHBONE}, p.hbone, p.handshakes.ready}) })
	}
	if old != nil {
		old.Close()
	}
}

// Drain implements [inpod.Proxy]. Peers are told to open no new streams; connections of the pod itself go on, on the
// HBONE connections there are and on new ones.
func (p *podProxy) Drain(ctx context.Context) {
	p.stopAccepting()
	stop := context.AfterFunc(ctx, func() { p.cancel(errForcedDrain) })
	defer stop()
	_ = p.server.Shutdown(ctx)
	p.carrying.Wait()
	// What the last connections sent may still be on its way to the peers.
	flushing, cancel := context.WithTimeout(p.ctx, flushTimeout)
	defer cancel()
	_ = p.pool.Close(flushing)
	p.cancel(errPodStopped)
}

// flushTimeout bounds how long HBONE connections without streams may take to end.
const flushTimeout = 2 * time.Second

// Stop implements [inpod.Proxy].
func (p *podProxy) Stop() {
	p.cancel(errPodStopped)
	p.stopAccepting()
	p.carrying.Wait()
	_ = p.pool.Close(p.ctx)
}

// stopAccepting closes the listeners and waits for the accept loops. What was accepted is carried.
func (p *podProxy) stopAccepting() {
	p.mu.Lock()
	l := p.listeners
	p.draining = true
	p.mu.Unlock()
	p.handshakes.drain()
	if !l.Shared && p.ctx.Err() == nil {
		// Closing the last copy resets what waits in the accept queue, so take that first.
		for _, ln := range l.All() {
			_ = ln.SetDeadline(time.Now().Add(10 * time.Millisecond))
		}
		p.accepting.Wait()
	}
	l.Close()
	p.accepting.Wait()
}
