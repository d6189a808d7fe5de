// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"time"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
	"github.com/sluice-mesh/sluice/ztunnel/discovery"
	"github.com/sluice-mesh/sluice/ztunnel/hbone"
	"github.com/sluice-mesh/sluice/ztunnel/identity"
	"github.com/sluice-mesh/sluice/ztunnel/inpod"
	"github.com/sluice-mesh/sluice/ztunnel/proxy"
	"github.com/sluice-mesh/sluice/ztunnel/telemetry"
)

// openDatapath waits until the agent has loaded the node's maps. With a foreign agent there are none.
func (z *ztunnel) openDatapath(ctx context.Context) (*bpf.Node, error) {
	if z.config.AgentSocket == "" {
		return nil, inpod.CheckPrivileges()
	}
	z.ready.Pend(taskMaps)
	for warned := false; ; warned = true {
		node, err := bpf.OpenNode(z.config.PinRoot)
		if err == nil {
			z.ready.Done(taskMaps)
			return node, nil
		}
		if !errors.Is(err, bpf.ErrNotLoaded) {
			return nil, err
		}
		if !warned {
			z.log.Warn("the agent has not loaded the datapath yet; waiting", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil, nil
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// servePods takes orders from the agent until ctx ends, beginning when the control plane has said what there is.
func (z *ztunnel) servePods(ctx, life context.Context) error {
	node, err := z.openDatapath(ctx)
	if err != nil || ctx.Err() != nil {
		return err
	}
	if err := z.makeManager(life, node); err != nil {
		return err
	}
	z.life.Go(func() {
		tick := time.NewTicker(returnInterval)
		defer tick.Stop()
		returnMemory(life, tick.C, z.proxy.Live)
	})
	select {
	case <-z.synced:
	case <-ctx.Done():
		return nil
	}
	z.ready.Done(taskState)
	if node != nil {
		z.orders.Go(func() { z.keepDestinations(ctx, node) })
	}
	client := &inpod.Client{Socket: z.config.ZDSSocket, Manager: z.pods, Log: z.pods.Log, Ready: z.podsReady}
	return client.Run(ctx)
}

// makeManager makes the proxy and the table of pods it serves, and begins to serve ztunnel's own pod. node is nil with a foreign agent.
func (z *ztunnel) makeManager(life context.Context, node *bpf.Node) error {
	prepare, listen := inpod.MarkWith(z.config.PacketMark), inpod.ListenInPod
	if z.config.DNSCapture {
		listen = inpod.ListenInPodForDNS
	}
	if node != nil {
		prepare = func(fd int) error { return node.TagSocket(fd, bpf.TagProxy) }
		listen = inpod.AskAgent(nodeapi.Client{Socket: z.config.AgentSocket}, prepare)
	}
	limit := limits(z.config, z.log)
	carrier := proxy.New(life, proxy.Config{
		Store:     z.store,
		ServerTLS: func(id identity.Identity) *tls.Config { return identity.ServerTLS(z.certs, id) },
		ClientTLS: func(id identity.Identity, expected []string) *tls.Config {
			return identity.ClientTLS(z.certs, id, expected)
		},
		Hold: z.certs.Hold, Release: z.certs.Release, CRL: z.crl,
		Metrics: z.metrics, Access: z.access, Log: telemetry.Scope(z.log, "proxy"),
		Network: z.config.Network, ClusterID: z.config.ClusterID, Redirected: node == nil,
		TCP: z.config.tcp(), MaxStreams: z.config.PoolMaxStreams, IdleTimeout: z.config.PoolUnusedRelease,
		Windows:           hbone.Windows{Stream: z.config.StreamWindow, Connection: z.config.ConnectionWindow, Frame: z.config.FrameSize},
		NoResponseBaggage: !z.config.ResponseBaggage, InfoPolicies: z.config.AuthzInfo,
		LocalhostAppTunnel: z.config.LocalhostAppTunnel,
		Limits:             limit,
	})
	z.metrics.ShowWindows(carrier, limit.Memory)
	sockets := inpod.NewSockets(life, prepare)
	sockets.Configure(z.config.sockets())
	z.mu.Lock()
	defer z.mu.Unlock()
	z.proxy = carrier
	z.pods = &inpod.Manager{
		Sockets: sockets, Listen: listen, Start: z.startPod(carrier, node == nil),
		Observer: podCounts{z.metrics}, Log: telemetry.Scope(z.log, "inpod"),
	}
	return z.serveOwn(carrier)
}

func (z *ztunnel) keepDestinations(ctx context.Context, node *bpf.Node) {
	d := destinations{
		set:  node.Destinations(),
		open: func() (captureSet, error) { return bpf.OpenDestinations(z.config.PinRoot) },
		size: z.metrics.Destinations, log: telemetry.Scope(z.log, "datapath"),
		want: func() discovery.CaptureSet {
			set := z.store.CaptureSet(z.config.Network)
			// Connections to these are refused here rather than sent out, which is also how the command line tests capture.
			set.Addrs = append(set.Addrs, proxy.HiddenAddrs()...)
			return set
		},
	}
	d.run(ctx, z.store.Subscribe())
}

func (z *ztunnel) podsReady(ready bool) {
	if ready {
		z.ready.Done(taskPods)
	} else {
		z.ready.Pend(taskPods)
	}
}

// podCounts shows the table of pods as metrics.
type podCounts struct{ m *telemetry.Metrics }

func (c podCounts) Counts(running, pending int) {
	c.m.ActivePods.Set(float64(running))
	c.m.PendingPods.Set(float64(pending))
}
func (c podCounts) Started() { c.m.PodsStarted.Inc() }
func (c podCounts) Stopped() { c.m.PodsEnded.Inc() }
