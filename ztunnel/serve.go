// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"

	"github.com/sluice-mesh/sluice/ztunnel/discovery"
	"github.com/sluice-mesh/sluice/ztunnel/identity"
	"github.com/sluice-mesh/sluice/ztunnel/inpod"
	"github.com/sluice-mesh/sluice/ztunnel/proxy"
	"github.com/sluice-mesh/sluice/ztunnel/telemetry"
)

// What readiness waits for, in the reference's words.
const (
	taskState = "state manager"
	taskPods  = "workload proxy manager"
	taskMaps  = "datapath"
)

// ztunnel is the parts of the running process.
//
//	control plane ──xDS──► Client ──► Store ──► proxy, destinations ──► kernel
//	              ◄──CSR── Manager (certificates) ──► proxy
//	agent ──ZDS──► inpod.Client ──► inpod.Manager ──► proxy, one per pod
type ztunnel struct {
	config  *Config
	log     *slog.Logger
	levels  *telemetry.Levels
	metrics *telemetry.Metrics
	access  *telemetry.AccessLog
	ready   telemetry.Readiness

	store *discovery.Store
	// synced is closed when the control plane has said what there is.
	synced <-chan struct{}
	certs  *identity.Manager
	crl    *identity.CRL // nil if none is configured
	// proxy, pods and own, which is nil for none, are set when the datapath is open; read them after orders only, or under mu.
	mu    sync.Mutex
	proxy *proxy.Proxy
	pods  *inpod.Manager
	own   inpod.Proxy

	// stop begins the end of the process; its cause is what main reports, nil for an end in order.
	stop context.CancelCauseFunc
	// orders are what stops when draining begins, life is what goes on until it is over.
	orders, life sync.WaitGroup
}

// serve runs until ctx ends and all is drained. An error means that it could not start or had to give up.
func serve(ctx context.Context, config *Config, log *slog.Logger, levels *telemetry.Levels) error {
	raiseFileLimit(log)
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	life, end := context.WithCancel(context.Background())
	z := &ztunnel{config: config, log: log, levels: levels, metrics: telemetry.NewMetrics(version()), store: discovery.NewStore(), stop: stop, access: telemetry.NewAccessLog(log)}
	defer z.life.Wait()
	defer end()
	if err := z.start(ctx, life); err != nil {
		return err
	}
	<-ctx.Done()
	z.orders.Wait()
	z.drain()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// start returns when everything runs that can run before the control plane and the agent answer.
func (z *ztunnel) start(ctx, life context.Context) error {
	z.ready.Pend(taskState)
	z.ready.Pend(taskPods)
	if err := z.servePages(life); err != nil {
		return err
	}
	if err := z.followControlPlane(life); err != nil {
		return err
	}
	z.orders.Go(func() {
		if err := z.servePods(ctx, life); err != nil {
			z.stop(err)
		}
	})
	z.life.Go(func() { z.evictSeries(life) })
	z.log.Info("ztunnel started", "version", version(), "node", z.config.NodeName)
	return nil
}

// servePages starts the three HTTP servers. An address in use is an error.
//
// They answer to the very end, drain included.
func (z *ztunnel) servePages(life context.Context) error {
	admin := &telemetry.Admin{Dump: z.dump, Recent: z.access.Recent, Explain: z.explain, Levels: z.levels, Quit: func() { z.stop(nil) }}
	for _, page := range []struct {
		name, address string
		handler       http.Handler
	}{
		{"admin", z.config.AdminAddress, admin.Handler()},
		{"stats", z.config.StatsAddress, telemetry.StatsHandler(z.metrics)},
		{"readiness", z.config.ReadinessAddress, telemetry.ReadyHandler(&z.ready)},
	} {
		l, err := net.Listen("tcp", page.address)
		if err != nil {
			return fmt.Errorf("%s page: %w", page.name, err)
		}
		z.log.Info("page is served", "page", page.name, "address", l.Addr().String())
		z.life.Go(func() {
			if err := telemetry.Serve(life, l, page.handler); err != nil {
				z.stop(fmt.Errorf("%s page: %w", page.name, err))
			}
		})
	}
	return nil
}

// followControlPlane fills the store and makes the certificate manager.
//
// Both go on while draining: policies must hold for the connections that are left.
func (z *ztunnel) followControlPlane(life context.Context) error {
	if err := z.loadLocal(); err != nil {
		return err
	}
	if err := z.followXDS(life); err != nil {
		return fmt.Errorf("xds: %w", err)
	}
	ca, err := identity.NewCAClient(z.config.caServer(), z.config.SecretTTL)
	if err != nil {
		return fmt.Errorf("certificate authority: %w", err)
	}
	certs, err := z.certificates()
	if err != nil {
		return err
	}
	certs.CA = ca
	z.crl, z.certs = certs.CRL, identity.NewManager(certs)
	z.life.Go(func() { z.followRevocations(life) })
	z.life.Go(func() {
		<-life.Done()
		z.certs.Close()
		_ = ca.Close()
	})
	return nil
}

// drain lets connections end, for as long as the configuration allows.
func (z *ztunnel) drain() {
	if z.pods == nil {
		return // never got that far
	}
	z.log.Info("draining", "limit", z.config.DrainTimeout)
	z.ready.Pend("drain")
	ctx, cancel := context.WithTimeout(context.Background(), z.config.DrainTimeout)
	defer cancel()
	var own sync.WaitGroup
	if z.own != nil {
		own.Go(func() { z.own.Drain(ctx) })
	}
	z.pods.Drain(ctx)
	own.Wait()
}
