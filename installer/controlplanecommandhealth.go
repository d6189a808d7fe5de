// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
)

// serveHealth has /metrics, /healthz/live and /healthz/ready answer until ctx ends, if an address is configured.
func (p *controlPlane) serveHealth(ctx context.Context, g *errgroup.Group) error {
	if p.cfg.MetricsAddress == "" {
		return nil
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", p.cfg.MetricsAddress)
	if err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister((*controlplaneCollector)(p))
	mux := http.NewServeMux()
	mux.Handle("/metrics", figures(registry))
	mux.HandleFunc("/healthz/live", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "alive\n") })
	mux.HandleFunc("/healthz/ready", p.serveReady)
	srv := page(mux)
	g.Go(func() error {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("metrics: %w", err)
		}
		return nil
	})
	g.Go(func() error { <-ctx.Done(); return srv.Close() })
	return nil
}

// serveReady stays at ready in an outage of the API: what is known goes on being served.
func (p *controlPlane) serveReady(w http.ResponseWriter, _ *http.Request) {
	switch {
	case !p.known.Load():
		http.Error(w, "the Kubernetes API has not told all yet", http.StatusServiceUnavailable)
	case !p.serves.Load():
		http.Error(w, "no root to serve with yet; the log says why", http.StatusServiceUnavailable)
	default:
		_, _ = io.WriteString(w, "ready\n")
	}
}

// controlplaneCollector reads the figures of a controlPlane when asked.
type controlplaneCollector controlPlane

var (
	leadsDesc    = prometheus.NewDesc("sluice_controlplane_leads", "Whether this replica looks after the mesh's root.", nil, nil)
	objectsDesc  = prometheus.NewDesc("sluice_controlplane_objects", "Objects that are known, by kind.", []string{"kind"}, nil)
	mistakesDesc = prometheus.NewDesc("sluice_controlplane_mistaken_objects", "Objects that cannot be carried out as they are now.", nil, nil)
	futileDesc   = prometheus.NewDesc("sluice_controlplane_ineffective_objects", "What objects say that has no effect here.", nil, nil)
	streamsDesc  = prometheus.NewDesc("sluice_controlplane_xds_streams", "xDS streams that are open.", nil, nil)
	rejectedDesc = prometheus.NewDesc("sluice_controlplane_xds_rejected_total", "xDS responses that a client did not take in full.", nil, nil)
	certsDesc    = prometheus.NewDesc("sluice_controlplane_certificates_total", "Certificates asked for, by result.", []string{"result"}, nil)
	callersDesc  = prometheus.NewDesc("sluice_controlplane_callers_refused_total", "Calls of those who did not show who they are, or may not ask.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c *controlplaneCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{leadsDesc, objectsDesc, mistakesDesc, futileDesc, outageDesc, streamsDesc, rejectedDesc, certsDesc, callersDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *controlplaneCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	s := c.cluster.Snapshot()
	gauge(leadsDesc, number(c.leads.Load()))
	gauge(objectsDesc, len(s.Namespaces), "Namespace")
	gauge(objectsDesc, len(s.Pods), "Pod")
	gauge(objectsDesc, len(s.Services), "Service")
	gauge(objectsDesc, len(s.Nodes), "Node")
	gauge(objectsDesc, len(s.EndpointSlices), "EndpointSlice")
	gauge(objectsDesc, len(s.PeerAuthentications), "PeerAuthentication")
	gauge(objectsDesc, len(s.AuthorizationPolicies), "AuthorizationPolicy")
	gauge(mistakesDesc, len(s.Errors))
	gauge(futileDesc, len(s.Warnings))
	gauge(streamsDesc, int(c.counters.Streams.Load()))
	ch <- prometheus.MustNewConstMetric(outageDesc, prometheus.GaugeValue, c.reach.Outage().Seconds())
	count(rejectedDesc, c.counters.Rejected.Load())
	count(certsDesc, c.counters.CertificatesIssued.Load(), "issued")
	count(certsDesc, c.counters.CertificatesRefused.Load(), "refused")
	count(callersDesc, c.counters.CallersRefused.Load())
}
