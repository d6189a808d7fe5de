// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"github.com/sluice-mesh/sluice/ztunnel/dns"
	"github.com/sluice-mesh/sluice/ztunnel/inpod"
	"github.com/sluice-mesh/sluice/ztunnel/proxy"
	"github.com/sluice-mesh/sluice/ztunnel/telemetry"
)

// resolvConf is where the name servers are for queries that a foreign agent's rules redirect.
const resolvConf = "/etc/resolv.conf"

// startPod returns what serves a pod: its connections, and its queries where they are captured.
func (z *ztunnel) startPod(carrier *proxy.Proxy, foreignAgent bool) inpod.StartFunc {
	config := dns.Config{
		Resolver: &dns.Resolver{Store: z.store, Domain: z.config.ClusterDomain, PreferredNamespace: z.config.PreferredNamespace},
		Metrics:  z.metrics, Log: telemetry.Scope(z.log, "dns"),
	}
	if foreignAgent && z.config.DNSCapture {
		servers, err := dns.ReadServers(resolvConf)
		if err != nil {
			config.Log.Warn("names outside the mesh will not be resolved for pods whose queries are redirected", "error", err)
		}
		config.Redirected = &dns.Redirected{Servers: servers}
	}
	return func(p *inpod.Pod, l *inpod.Listeners) inpod.Proxy {
		carried := carrier.Serve(p, l)
		c := config
		c.Log = c.Log.With("pod", p.String())
		s := &served{Proxy: carried, dns: dns.NewServer(c, p, proxy.ClientOf(carried))}
		s.dns.Listen(l.DNSUDP, l.DNSTCP)
		return s
	}
}

// served is a pod being served. All listeners are the embedded proxy's to close, those of queries too.
type served struct {
	inpod.Proxy
	dns *dns.Server
}

// Replace implements [inpod.Proxy].
func (s *served) Replace(l *inpod.Listeners) {
	s.dns.Listen(l.DNSUDP, l.DNSTCP)
	s.Proxy.Replace(l)
}

// Drain implements [inpod.Proxy].
func (s *served) Drain(ctx context.Context) {
	s.Proxy.Drain(ctx)
	s.dns.Drain(ctx)
}

// Stop implements [inpod.Proxy].
func (s *served) Stop() {
	s.Proxy.Stop()
	s.dns.Stop()
}
