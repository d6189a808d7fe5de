// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"fmt"
	"os"

	"github.com/sluice-mesh/sluice/ztunnel/discovery"
	"github.com/sluice-mesh/sluice/ztunnel/identity"
	"github.com/sluice-mesh/sluice/ztunnel/telemetry"
)

// loadLocal puts the file of local xDS into the store, if there is one. It is read once. What the control plane says of
// the same names replaces it.
func (z *ztunnel) loadLocal() error {
	text, name := []byte(z.config.LocalXDS), "LOCAL_XDS"
	if path := z.config.LocalXDSPath; path != "" {
		var err error
		if text, err = os.ReadFile(path); err != nil {
			return fmt.Errorf("local xds: %w", err)
		}
		name = path
	}
	u, err := discovery.ParseLocal(text)
	if err != nil {
		return fmt.Errorf("local xds %s: %w", name, err)
	}
	z.store.Apply(u)
	if len(text) > 0 {
		z.log.Info("local xds is loaded", "from", name, "workloads", len(u.Workloads), "services", len(u.Services), "policies", len(u.Policies))
	}
	return nil
}

// xdsServer and caServer say how to reach the control plane and the certificate authority, which are often one.
func (c *Config) xdsServer() identity.ControlPlane {
	return identity.ControlPlane{
		Address: c.XDSAddress, RootCA: c.XDSRootCA, ServerName: c.AltXDSHostname, Token: c.AuthToken,
		ClusterID: c.ClusterID, Headers: c.XDSHeaders,
	}
}

func (c *Config) caServer() identity.ControlPlane {
	return identity.ControlPlane{
		Address: cmp.Or(c.CAAddress, c.XDSAddress), RootCA: cmp.Or(c.CARootCA, c.XDSRootCA), ServerName: c.AltCAHostname,
		Token: c.AuthToken, ClusterID: c.ClusterID, Headers: c.CAHeaders,
	}
}

// followXDS sets synced, which is closed at once if there is no control plane to wait for.
func (z *ztunnel) followXDS(life context.Context) error {
	c := z.config
	if c.XDSAddress == "" {
		synced := make(chan struct{})
		close(synced)
		z.synced = synced
		return nil
	}
	xds, err := discovery.NewClient(discovery.Config{
		ControlPlane: c.xdsServer(),
		Node: discovery.Node{
			InstanceIP: c.InstanceIP, PodName: cmp.Or(c.PodName, c.NodeName), Namespace: c.Namespace,
			NodeName: c.NodeName, ClusterID: c.ClusterID, Network: c.Network, Metadata: c.Metadata,
		},
		Store: z.store, Counters: z.metrics, Logger: telemetry.Scope(z.log, "xds"),
	})
	if err != nil {
		return err
	}
	if !c.xdsServer().Local() { // an agent's own control plane tells of the mesh alone
		z.store.RememberGone()
	}
	z.synced = xds.Synced()
	z.life.Go(func() { _ = xds.Run(life) })
	return nil
}
