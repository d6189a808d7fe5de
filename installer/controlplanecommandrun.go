// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/kubernetes"

	"github.com/sluice-mesh/sluice/installer/controlplane"
	"github.com/sluice-mesh/sluice/installer/kube"
)

// controlPlane is one of the replicas that serve a cluster. All serve; the one that leads looks after the root.
type controlPlane struct {
	cfg      *controlplaneConfig
	client   kubernetes.Interface
	reviews  kubernetes.Interface // with a rate of its own: callers decide how much of it is used
	cluster  *kube.Cluster
	reach    *kube.Reach
	log      *slog.Logger
	counters controlplane.Counters

	leads, known, serves atomic.Bool
}

// run returns nil once ctx has ended, or what keeps this replica from serving.
func (p *controlPlane) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	if err := p.serveHealth(ctx, g); err != nil {
		return err
	}
	p.cluster.TellAuthors(p.client, p.cfg.Identity, p.leads.Load)
	roots := kube.NewRoots(p.client, p.cfg.Namespace, p.cfg.TrustDomain, p.log)
	g.Go(func() error { return p.lead(ctx, roots) })
	g.Go(func() error {
		if err := p.cluster.Start(ctx); err != nil {
			return err
		}
		p.known.Store(true)
		g.Go(func() error { return p.cluster.Run(ctx) })
		return p.serve(ctx, roots)
	})
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// lead has this replica stand for the lead over and over: who loses it, as all do in an outage of the API, serves on.
func (p *controlPlane) lead(ctx context.Context, roots *kube.Roots) error {
	for {
		err := kube.Lead(ctx, p.client, p.cfg.Namespace, p.cfg.Identity, p.log, func(ctx context.Context) error {
			p.leads.Store(true)
			p.cluster.Look()
			defer p.leads.Store(false)
			return roots.Keep(ctx)
		})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !errors.Is(err, kube.ErrDeposed) {
			return fmt.Errorf("lead: %w", err)
		}
		p.log.Warn("lead lost", "err", err)
	}
}

// serve serves with the root that the cluster has, and anew with each that comes in its place.
func (p *controlPlane) serve(ctx context.Context, roots *kube.Roots) error {
	root, err := roots.Next(ctx, controlplane.RootPEM{})
	for err == nil {
		root, err = p.serveWith(ctx, root, roots)
	}
	return err
}

// serveWith returns the root that comes next.
func (p *controlPlane) serveWith(ctx context.Context, root controlplane.RootPEM, roots *kube.Roots) (next controlplane.RootPEM, err error) {
	server, err := p.listen(ctx, root)
	if err != nil {
		return next, err
	}
	g, ctx := errgroup.WithContext(ctx)
	ctx, cancel := context.WithCancel(ctx)
	g.Go(func() error {
		p.serves.Store(true)
		defer p.serves.Store(false)
		return server.Run(ctx)
	})
	g.Go(func() error {
		defer cancel()
		var err error
		if next, err = roots.Next(ctx, root); err == nil {
			p.log.Info("the mesh's root has changed: clients are cut off, and come back")
		}
		return err
	})
	err = g.Wait()
	return next, err
}

func (p *controlPlane) listen(ctx context.Context, root controlplane.RootPEM) (*controlplane.Server, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", p.cfg.Listen)
	if err != nil {
		return nil, err
	}
	server, err := controlplane.New(controlplane.Config{
		Catalog: p.cluster, ClusterID: p.cfg.ClusterID, TrustDomain: p.cfg.TrustDomain, RootNamespace: p.cfg.RootNamespace,
		Counters: &p.counters, Logger: p.log,
		Remote: &controlplane.Remote{
			Listener: l, Root: root, Names: p.cfg.Names,
			Admit: kube.NewTokens(p.reviews, p.cluster, p.cfg.Trusted).Admit, MayImpersonate: p.cluster.MayImpersonate,
		},
	})
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return server, nil
}
