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
	// Hold has an identity's certificate fetched ahead of its first use and kept; Release takes one Hold back. Neither
	// waits.
	Hold, Release func(identity.Identity)
	// CRL cuts the connections of peers that it revokes later; their handshakes are refused by ServerTLS and ClientTLS.
	// Nil revokes nothing.
	CRL *identity.CRL

	Metrics *telemetry.Metrics
	Access  *telemetry.AccessLog
	Log     *slog.Logger
	// Network and ClusterID name where the pods are; a network may be "".
	Network   string
	ClusterID string
	// Redirected means that a foreign agent's rules bring connections here, and conntrack knows where they went.
	Redirected bool
	// TCP is applied to the connections that are accepted; its zero value turns keepalive off.
	TCP inpod.TCP
	// MaxStreams and IdleTimeout are those of [hbone.PoolConfig], whose defaults 0 stands for.
	MaxStreams  int
	IdleTimeout time.Duration
	// Windows are those of both ends of tunnels.
	Windows hbone.Windows
	// NoResponseBaggage keeps answers to tunnels from saying which workload gives them, and ztunnel from believing what
	// clients on other networks say of themselves.
	NoResponseBaggage bool
	// InfoPolicies logs the decisions of policies at level info and not debug.
	InfoPolicies bool
	// LocalhostAppTunnel: applications that take PROXY protocol headers are connected to over loopback.
	LocalhostAppTunnel bool
	// Limits are shared among the pods. Zero means none.
	Limits Limits
}

// Proxy carries the connections of all pods of a node.
type Proxy struct {
	Config
	router router
	live   live
	hosts  hosts
	budget budget
	memory memory
	spare  spare
}

// New returns a Proxy. Its check of live connections against changed policies ends with ctx.
func New(ctx context.Context, c Config) *Proxy {
	p := &Proxy{Config: c}
	p.router.store, p.router.network, p.router.redirected = c.Store, c.Network, c.Redirected
	p.budget.limits = c.Limits
	p.spare.init()
	context.AfterFunc(ctx, p.spare.close)
	c.Metrics.OnScrape(p.live.progress)
	go p.watchPolicies(ctx, c.Store.Subscribe())
	return p
}

// network opens the connections of one pod; *[inpod.Pod] in life.
type network interface {
	// Dial connects from the pod's address from, or from any if that is the zero address.
	Dial(ctx context.Context, from netip.Addr, to netip.AddrPort) (*net.TCPConn, error)
	// Deliver connects from the address from, whoever owns it, but from no source that avoid refuses.
	Deliver(ctx context.Context, from netip.Addr, to netip.AddrPort, avoid inpod.Avoid) (*net.TCPConn, error)
}

// Serve begins to serve a pod on l. It is an [inpod.StartFunc].
func (p *Proxy) Serve(pod *inpod.Pod, l *inpod.Listeners) inpod.Proxy {
	return p.serve(pod.Info, pod, l)
}

// serve offers peers all ports, or those given.
func (p *Proxy) serve(info inpod.Info, net network, l *inpod.Listeners, ports ...uint16) *podProxy {
	ctx, cancel := context.WithCancelCause(context.Background())
	pp := &podProxy{
		Proxy: p, info: info, network: net, ports: ports, ctx: ctx, cancel: cancel,
		log:     p.Log.With("pod", info.String()),
		account: account{budget: &p.budget},
	}
	var memory hbone.Memory
	if p.Limits.Memory > 0 {
		memory = &podMemory{node: &p.memory, total: p.Limits.Memory}
	}
	pp.pool = hbone.NewPool(hbone.PoolConfig{
		DialTimeout: connectTimeout, MaxStreams: p.MaxStreams, IdleTimeout: p.IdleTimeout, Windows: p.Windows, Memory: memory, Logger: p.Log,
	})
	pp.server = &hbone.Server{
		TLS:     &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, GetConfigForClient: pp.tlsConfig},
		Handler: pp.stream, Windows: p.Windows, Memory: memory, Logger: p.Log, Admit: pp.handshakes.admit,
	}
	// A stream in the middle of a write notices nothing but the end of its connection.
	context.AfterFunc(ctx, func() { _ = pp.pool.Close(ctx) })
	pp.Replace(l)
	go pp.prefetch(ctx)
	pp.watchRevocations()
	return pp
}
