// SPDX-License-Identifier: Apache-2.0

// Package proxy carries the connections of the pods that ztunnel serves. The life of a connection is one function per
// kind, to be read top to bottom: [podProxy.outbound], [podProxy.stream] (inbound HBONE) and [podProxy.plaintext].
//
//	app ──► outbound ──route──► HBONE to the peer's ztunnel │ TCP to who speaks no HBONE
//	peer's ztunnel ──HBONE──► stream ───policy──► app, from the client's address
//	anybody else ───TCP─────► plaintext ─policy──► app, from the client's address
package proxy

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/sluice-mesh/sluice/ztunnel/discovery"
	"github.com/sluice-mesh/sluice/ztunnel/hbone"
	"github.com/sluice-mesh/sluice/ztunnel/identity"
	"github.com/sluice-mesh/sluice/ztunnel/inpod"
	"github.com/sluice-mesh/sluice/ztunnel/telemetry"
)

const (
	connectTimeout = 10 * time.Second
	// selfTimeout is how long a connection waits for its pod to become known over xDS.
	selfTimeout = 5 * time.Second
)

// Config is what a Proxy needs. All fields must be set unless their comment says otherwise.
type Config struct {
	Store *discovery.Store
	// ServerTLS and ClientTLS return the TLS configuration of one side. They must be quick; handshakes may wait.
	ServerTLS func(id identity.Identity) *tls.Config
	ClientTLS func(id identity.Identity, expected []string) *tls.Config
	// Prefetch has an identity's certificate fetched ahead of its first use, Forget drops it. Neither waits.
	Prefetch, Forget func(identity.Identity)

	Metrics *telemetry.Metrics
	Access  *telemetry.AccessLog
	Log     *slog.Logger
	// Network and ClusterID name where the pods are; a network may be "".
	Network   string
	ClusterID string
	// Redirected means that a foreign agent's rules bring connections here, and conntrack knows where they went.
	Redirected bool
}

// Proxy carries the connections of all pods of a node.
type Proxy struct {
	Config
	router     router
	live       live
	identities identities
}

// New returns a Proxy. Its check of live connections against changed policies ends with ctx.
func New(ctx context.Context, c Config) *Proxy {
	p := &Proxy{Config: c}
	p.router.store, p.router.network = c.Store, c.Network
	c.Metrics.OnScrape(p.live.progress)
	go p.watchPolicies(ctx, c.Store.Subscribe())
	return p
}

// network opens the connections of one pod; *[inpod.Pod] in life.
type network interface {
	Dial(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error)
	// DialFrom dials with the source address from, whoever owns it.
	DialFrom(ctx context.Context, from netip.Addr, to netip.AddrPort) (*net.TCPConn, error)
}

// Serve begins to serve a pod on l. It is an [inpod.StartFunc].
func (p *Proxy) Serve(pod *inpod.Pod, l *inpod.Listeners) inpod.Proxy {
	return p.serve(pod.Info, pod, l)
}

func (p *Proxy) serve(info inpod.Info, net network, l *inpod.Listeners) *podProxy {
	ctx, cancel := context.WithCancelCause(context.Background())
	pp := &podProxy{
		Proxy: p, info: info, network: net, ctx: ctx, cancel: cancel,
		log:  p.Log.With("pod", info.String()),
		pool: hbone.NewPool(hbone.PoolConfig{DialTimeout: connectTimeout, Logger: p.Log}),
	}
	pp.server = &hbone.Server{
		TLS:     &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, GetConfigForClient: pp.tlsConfig},
		Handler: pp.stream, Logger: p.Log,
	}
	pp.Replace(l)
	go pp.prefetch(ctx)
	return pp
}

// podProxy is one pod being served.
type podProxy struct {
	*Proxy
	info    inpod.Info
	network network
	log     *slog.Logger
	pool    *hbone.Pool
	server  *hbone.Server

	// ctx ends, with the reason as its cause, when every connection is to be cut.
	ctx    context.Context
	cancel context.CancelCauseFunc

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
		p.accepting.Go(func() { p.acceptLoop(ln, p.outbound) })
	}
	for _, ln := range l.Inbound {
		p.accepting.Go(func() { p.acceptLoop(ln, p.plaintext) })
	}
	for _, ln := range l.HBONE {
		p.accepting.Go(func() { p.acceptLoop(ln, p.hbone) })
	}
	if old != nil {
		old.Close()
	}
}

// acceptLoop accepts until ln is closed. It outlives shortages: a process out of descriptors recovers when some close.
func (p *podProxy) acceptLoop(ln *net.TCPListener, carry func(context.Context, *net.TCPConn)) {
	for {
		conn, err := ln.AcceptTCP()
		if err != nil {
			if isClosed(err) {
				return
			}
			p.log.Error("cannot accept", "listener", ln.Addr().String(), "error", err)
			select {
			case <-time.After(50 * time.Millisecond):
				continue
			case <-p.ctx.Done():
				return
			}
		}
		p.carrying.Go(func() {
			_ = conn.SetKeepAliveConfig(inpod.KeepAlive)
			carry(p.ctx, conn)
		})
	}
}

// Drain implements [inpod.Proxy]. Peers are told to open no new streams; connections of the pod itself go on, on the
// HBONE connections there are and on new ones.
func (p *podProxy) Drain(ctx context.Context) {
	p.stopAccepting()
	stop := context.AfterFunc(ctx, func() { p.cancel(errForcedDrain) })
	defer stop()
	_ = p.server.Shutdown(ctx)
	p.finish()
}

// Stop implements [inpod.Proxy].
func (p *podProxy) Stop() {
	p.cancel(errPodStopped)
	p.stopAccepting()
	p.finish()
}

// stopAccepting closes the listeners and waits for the accept loops. What was accepted is carried.
func (p *podProxy) stopAccepting() {
	p.mu.Lock()
	l := p.listeners
	p.draining = true
	p.mu.Unlock()
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

func (p *podProxy) finish() {
	p.carrying.Wait()
	p.cancel(errPodStopped)
	_ = p.pool.Close(p.ctx)
}
