// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/installer/controlplane"
	"github.com/sluice-mesh/sluice/installer/enroll"
	"github.com/sluice-mesh/sluice/installer/flows"
	"github.com/sluice-mesh/sluice/installer/ztunnels"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

func agentCommand(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var c agentConfig
	fs := newFlagSet("agent", stdout)
	c.declare(fs.FlagSet)
	if err := fs.parse(args, c.complete); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: c.LogLevel})).With("node", c.NodeName)
	a := &agent{cfg: c, log: log}
	a.cfg.cni.Leave = a.leaver.decide
	a.keeper = newKeeper(&a.cfg.cni, &a.cfg.paths, log, a.health.installed.Store)
	return a.run(ctx)
}

// agent is the node agent's parts, in the order in which they start.
//
//	maps ─► catalog ─► restore ─► control plane ─► ZDS, node API ─► compare ─► CNI ─► ready
//
// Restoring comes before ZDS: a ztunnel stops whatever the first snapshot does not name.
type agent struct {
	cfg agentConfig
	log *slog.Logger

	node     *bpf.Node
	catalog  controlplane.Source
	api      *apiSource // nil unless pods come from the Kubernetes API
	ztunnels *ztunnels.Server
	enroller *enroll.Enroller
	flows    *flows.Table
	nodeAPI  *nodeapi.Server
	keeper   *keeper
	leaver   leaver
	health   health
}

// run is the agent's life. When ctx ends it hangs up and returns nil. Nothing is taken off any pod, unless the agent's
// DaemonSet is deleted.
func (a *agent) run(ctx context.Context) error {
	lock, err := a.claimNode(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	if err := a.load(ctx); err != nil {
		return err
	}
	defer func() { _ = a.node.Close() }()
	changes, cancel := a.catalog.Subscribe()
	defer cancel()
	if err := a.prepare(); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.catalog.Run(ctx) })
	if err := a.startControlPlane(ctx, g); err != nil {
		return a.stop(g, err)
	}
	g.Go(func() error { return a.followLastKnown(ctx) })
	g.Go(func() error { return a.ztunnels.Serve(ctx) })
	g.Go(func() error { return a.nodeAPI.Serve(ctx) })
	g.Go(func() error { a.enroller.Run(ctx, changes); return nil })
	g.Go(func() error { return a.readFlows(ctx) })
	if a.api != nil {
		a.watchOwn(ctx)
		g.Go(func() error { return a.api.report(ctx) })
	}
	g.Go(func() error { return a.becomeReady(ctx) })
	err = g.Wait()
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	if left, clearErr := a.clear(ctx); left {
		err = errors.Join(err, clearErr)
		a.log.Info("agent stopped; no pod of the node is in the mesh", "err", err)
		return err
	}
	a.log.Info("agent stopped; enrolled pods stay enrolled", "err", err)
	return err
}

// stop is for the errors of steps between goroutines: the error ends those already running.
func (a *agent) stop(g *errgroup.Group, err error) error {
	g.Go(func() error { return err })
	return g.Wait()
}

// load opens what does not depend on other processes of ours.
func (a *agent) load(ctx context.Context) error {
	for _, dir := range []string{a.cfg.RunDir, a.cfg.StateDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := bpf.EnsureBPFFS(nearestExisting(a.cfg.PinRoot)); err != nil {
		return err
	}
	var err error
	if a.node, err = bpf.LoadNode(a.cfg.PinRoot, bpf.WithAttachMode(a.cfg.AttachMode)); err != nil {
		return err
	}
	if err := a.openSource(ctx); err != nil {
		return errors.Join(err, a.node.Close())
	}
	return nil
}

// nearestExisting is path or its first parent that exists: what has to be on a bpffs.
func nearestExisting(path string) string {
	for {
		if _, err := os.Stat(path); err == nil || path == "/" {
			return path
		}
		path = filepath.Dir(path)
	}
}

// prepare opens the sockets and finds the pods that are in the mesh already. Nobody is answered yet.
func (a *agent) prepare() (err error) {
	if err := a.saveLastKnown(); err != nil {
		return err
	}
	a.ztunnels, err = ztunnels.Listen(ztunnels.Config{
		Path: a.cfg.ztunnelSocket(), Logger: a.log, Changed: func() { a.enroller.Kick() },
	})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			a.ztunnels.Close()
		}
	}()
	cfg := enroll.Config{
		Node: a.node, Ztunnels: a.ztunnels, Catalog: a.catalog,
		NodeName: a.cfg.NodeName, StateDir: a.cfg.StateDir, WorkloadsDir: a.cfg.WorkloadsDir, Settings: a.cfg.Settings, Host: a.cfg.Host,
		ServeTimeout: a.cfg.ServeTimeout, Resync: a.cfg.Resync, ProxyDownLimit: a.cfg.ProxyDownLimit, Logger: a.log,
	}
	if a.api != nil {
		a.api.wire(&cfg)
	}
	if a.enroller, err = enroll.New(cfg); err != nil {
		return err
	}
	if err := a.enroller.Restore(); err != nil {
		return fmt.Errorf("restore pods: %w", err)
	}
	a.flows = flows.New(a.node.Pods, a.log)
	a.nodeAPI, err = nodeapi.Listen(a.cfg.agentSocket(), apiHandler{a.enroller, a.flows}, a.log)
	return err
}

// apiHandler answers for flows itself, and leaves all else to the enroller.
type apiHandler struct {
	*enroll.Enroller
	flows *flows.Table
}

// Handle implements nodeapi.Handler.
func (h apiHandler) Handle(ctx context.Context, req *nodeapi.Request, fds []int) (nodeapi.Answer, *nodeapi.Error) {
	if req.Verb != nodeapi.VerbFlows {
		return h.Enroller.Handle(ctx, req, fds)
	}
	follow := req.Follow
	return nodeapi.Answer{Stream: func(ctx context.Context, send func(any) error) error {
		return h.flows.Follow(ctx, follow, func(f flows.Flow) error { return send(f) })
	}}, nil
}

// readFlows feeds the table until ctx ends. Without the program that tells of flows it has nothing to do.
func (a *agent) readFlows(ctx context.Context) error {
	if !a.cfg.Host.Flows {
		return nil
	}
	src, err := a.node.Flows()
	if err != nil {
		a.log.Error("flows are not told of", "err", err)
		return nil
	}
	return a.flows.Run(ctx, src)
}

// startControlPlane returns once the control plane's socket accepts, or has failed to.
func (a *agent) startControlPlane(ctx context.Context, g *errgroup.Group) error {
	if a.cfg.XDSAddress != "" {
		a.log.Info("no embedded control plane: ztunnel uses another", "address", a.cfg.XDSAddress)
		return nil
	}
	cp, err := controlplane.New(controlplane.Config{
		Catalog: a.catalog, CADir: a.cfg.CADir, Socket: a.cfg.controlPlaneSocket(), ClusterID: a.cfg.ClusterID,
		TrustDomain: a.cfg.TrustDomain, NodeName: a.cfg.NodeName, MayImpersonate: a.enroller.MayImpersonate, Logger: a.log,
	})
	if err != nil {
		return err
	}
	g.Go(func() error { return cp.Run(ctx) })
	select {
	case <-cp.Ready():
	case <-ctx.Done(): // Run's error is the group's.
	}
	return nil
}

// becomeReady does what is left to do after everybody is answered, and then says so.
func (a *agent) becomeReady(ctx context.Context) error {
	stop, err := a.health.serve(ctx, a)
	if err != nil {
		return err
	}
	defer stop()
	a.enroller.Reconcile(ctx, enroll.Everything)
	g, ctx := errgroup.WithContext(ctx)
	installed := make(chan struct{})
	g.Go(func() error { return a.keeper.run(ctx, installed) })
	g.Go(func() error { return a.sayReady(ctx, installed) })
	return g.Wait()
}

// sayReady marks the node ready once plugin and entry are in place. From there on keeper says whether they are.
func (a *agent) sayReady(ctx context.Context, installed <-chan struct{}) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-installed:
	}
	if err := nodeapi.MarkReady(a.cfg.RunDir); err != nil {
		return err
	}
	a.enroller.MarkReady()
	a.health.started.Store(true)
	a.log.Info("agent ready")
	if a.api != nil && a.cfg.source.Untaint {
		return a.api.untaint(ctx)
	}
	return nil
}
