// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Metrics is everything ztunnel counts. Names and labels of the istio_ ones are those of the reference proxy, so that
// existing dashboards work. Safe for concurrent use.
type Metrics struct {
	registry *prometheus.Registry

	opened, closed, failed *prometheus.CounterVec
	sent, received         *prometheus.CounterVec
	verdicts               *prometheus.CounterVec
	sockets                *prometheus.GaugeVec
	xdsTerminations        *prometheus.CounterVec
	xdsMessages, xdsBytes  *prometheus.CounterVec
	dns                    dnsMetrics
	dnsRefused             *prometheus.CounterVec
	onDemandDNS            *prometheus.CounterVec
	onDemandUsed           uses[onDemandLabels]
	crlRejected            *prometheus.CounterVec
	evicted                prometheus.Counter

	ActivePods, PendingPods prometheus.Gauge
	PodsStarted, PodsEnded  prometheus.Counter
	// Destinations is the size of the set of addresses whose traffic the kernel captures.
	Destinations prometheus.Gauge

	mu       sync.RWMutex
	series   map[Labels]*Series
	dropping map[Labels]struct{} // taken from series by an eviction that has not dropped them yet
	dropped  *sync.Cond          // of mu: dropping shrank
	byWord   int                 // of series
	byWordOf map[string]int      // of byWord, by the peer's identity
	pollers  []func()
}

// NewMetrics returns metrics registered with a registry of their own. version labels istio_build.
func NewMetrics(version string) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry(), series: map[Labels]*Series{}, dropping: map[Labels]struct{}{}, byWordOf: map[string]int{}}
	m.dropped = sync.NewCond(&m.mu)
	m.opened = m.counterVec("istio_tcp_connections_opened_total", "Connections opened.", labelNames...)
	m.closed = m.counterVec("istio_tcp_connections_closed_total", "Connections closed.", labelNames...)
	m.failed = m.counterVec("istio_tcp_connections_failed_total", "Connections that failed, by response_flags.", labelNames...)
	m.received = m.counterVec("istio_tcp_received_bytes_total", "Bytes from the initiator of the connection.", labelNames...)
	m.sent = m.counterVec("istio_tcp_sent_bytes_total", "Bytes back to the initiator of the connection.", labelNames...)
	m.verdicts = m.counterVec("sluice_connection_verdicts_total", "Connections by what was decided about them.", "direction", "verdict")
	m.sockets = m.gaugeVec("istio_tcp_sockets_open", "Connections accepted and not yet closed.", "reporter")
	m.xdsTerminations = m.counterVec("istio_xds_connection_terminations_total", "xDS streams that ended, by reason.", "reason")
	m.xdsMessages = m.counterVec("istio_xds_message_total", "xDS responses received.", "url")
	m.xdsBytes = m.counterVec("istio_xds_message_bytes_total", "Bytes of xDS resources received.", "url")
	m.ActivePods = m.gauge("workload_manager_active_proxy_count", "Pods served.")
	m.PendingPods = m.gauge("workload_manager_pending_proxy_count", "Pods that could not be served yet and are retried.")
	m.PodsStarted = m.counter("workload_manager_proxies_started_total", "Pods that began to be served.")
	m.PodsEnded = m.counter("workload_manager_proxies_stopped_total", "Pods that are no longer served.")
	m.Destinations = m.gauge("sluice_destinations", "Addresses whose traffic the kernel hands to ztunnel.")
	m.onDemandDNS = m.counterVec("istio_on_demand_dns_total", "Look-ups of host names of workloads without addresses.", onDemandNames...)
	m.crlRejected = m.counterVec("istio_crl_policy_rejections_total", "Peers refused because their certificate is revoked.", "reporter")
	untracked := m.counterVec("istio_crl_untracked_connections_total", "Connections that are not watched for revocation: none, every one is.", "reporter")
	for _, r := range []Reporter{ReporterSource, ReporterDestination} {
		untracked.WithLabelValues(string(r))
	}
	m.evicted = m.counter("sluice_series_dropped_total", "Sets of labels dropped because their workload is gone.")
	m.registerDNS()
	build := m.gaugeVec("istio_build", "The running version.", "component", "tag")
	build.WithLabelValues("ztunnel", version).Set(1)
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *Metrics) counterVec(name, help string, labels ...string) *prometheus.CounterVec {
	v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	m.registry.MustRegister(v)
	return v
}

func (m *Metrics) gaugeVec(name, help string, labels ...string) *prometheus.GaugeVec {
	v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	m.registry.MustRegister(v)
	return v
}

func (m *Metrics) counter(name, help string) prometheus.Counter {
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	m.registry.MustRegister(c)
	return c
}

func (m *Metrics) gauge(name, help string) prometheus.Gauge {
	g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	m.registry.MustRegister(g)
	return g
}

// Verdict counts one decision about a connection.
func (m *Metrics) Verdict(direction, verdict string) {
	m.verdicts.WithLabelValues(direction, verdict).Inc()
}

// SocketOpened and SocketClosed follow the connections that were accepted.
func (m *Metrics) SocketOpened(r Reporter) { m.sockets.WithLabelValues(string(r)).Inc() }

// SocketClosed ends what SocketOpened began.
func (m *Metrics) SocketClosed(r Reporter) { m.sockets.WithLabelValues(string(r)).Dec() }

// XDSMessage counts one response for a type URL, with the bytes of its resources.
func (m *Metrics) XDSMessage(url string, bytes int) {
	m.xdsMessages.WithLabelValues(url).Inc()
	m.xdsBytes.WithLabelValues(url).Add(float64(bytes))
}

// XDSTermination counts the end of an xDS stream: ConnectionError, Error, Reconnect or Complete.
func (m *Metrics) XDSTermination(reason string) { m.xdsTerminations.WithLabelValues(reason).Inc() }

// OnScrape has poll called before each scrape, for counts that are only worth taking then.
func (m *Metrics) OnScrape(poll func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pollers = append(m.pollers, poll)
}

func (m *Metrics) poll() {
	m.mu.RLock()
	pollers := m.pollers
	m.mu.RUnlock()
	for _, poll := range pollers {
		poll()
	}
}
