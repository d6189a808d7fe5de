// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// dnsMetrics count queries. All have the labels of DNSLabels.
type dnsMetrics struct {
	requests, upstream, failures *prometheus.CounterVec
	duration                     *prometheus.HistogramVec
	used                         uses[DNSLabels]
}

func (d *dnsMetrics) drop(l DNSLabels) {
	values := l.values()
	d.requests.DeleteLabelValues(values...)
	d.upstream.DeleteLabelValues(values...)
	d.failures.DeleteLabelValues(values...)
	d.duration.DeleteLabelValues(values...)
}

// DNSLabels name a time series of the metrics of queries. Comparable.
type DNSLabels struct {
	QueryType string // "A"; the number of values must be bounded
	Protocol  string // "udp" or "tcp"
	Service   string // canonical service of the asking pod
	Revision  string
}

func (l DNSLabels) values() []string {
	return orUnknown([]string{l.QueryType, l.Protocol, l.Service, l.Revision})
}

func (m *Metrics) registerDNS() {
	names := []string{"request_query_type", "request_protocol", "source_canonical_service", "source_canonical_revision"}
	m.dns.requests = m.counterVec("istio_dns_requests_total", "DNS queries of pods whose queries are captured.", names...)
	m.dns.upstream = m.counterVec("istio_dns_upstream_requests_total", "DNS queries passed on to the server that the pod asked.", names...)
	m.dns.failures = m.counterVec("istio_dns_upstream_failures_total", "DNS queries passed on that got no answer.", names...)
	m.dns.duration = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "istio_dns_upstream_request_duration_seconds", Help: "Time until the server that the pod asked has answered.",
		Buckets: []float64{.0005, .001, .01, .1, 1, 5},
	}, names)
	m.registry.MustRegister(m.dns.duration)
	m.dnsRefused = m.counterVec("sluice_dns_refused_total", "DNS queries that were not looked up, by reason.", "reason")
}

// DNSRequest counts a query.
func (m *Metrics) DNSRequest(l DNSLabels) {
	m.dns.used.note(l)
	m.dns.requests.WithLabelValues(l.values()...).Inc()
}

// DNSUpstream counts a query that was passed on, how long that took, and whether it failed.
func (m *Metrics) DNSUpstream(l DNSLabels, took time.Duration, failed bool) {
	m.dns.used.note(l)
	values := l.values()
	m.dns.upstream.WithLabelValues(values...).Inc()
	m.dns.duration.WithLabelValues(values...).Observe(took.Seconds())
	if failed {
		m.dns.failures.WithLabelValues(values...).Inc()
	}
}

// DNSRefused counts a query that was dropped or answered with SERVFAIL unread: "malformed", "busy", "limit" for want of
// descriptors, or "no workload".
func (m *Metrics) DNSRefused(reason string) { m.dnsRefused.WithLabelValues(reason).Inc() }
