// SPDX-License-Identifier: Apache-2.0

package flows

import "github.com/prometheus/client_golang/prometheus"

// figures are over all pods: which path, which direction, nothing that grows with the cluster.
type figures struct {
	opened, refused, retransmits *prometheus.CounterVec
	bytes                        *prometheus.CounterVec
	rtt                          *prometheus.HistogramVec

	series map[seriesKey]*series
}

type seriesKey struct {
	path     string
	outbound bool
}

// series are the figures of one path and direction, looked up once: finding each by its labels took most of an event's
// time.
type series struct {
	opened, refused, retransmits, sent, received prometheus.Counter
	rtt                                          prometheus.Observer
}

func (f *figures) of(flow *Flow) *series {
	key := seriesKey{flow.Path, flow.Outbound}
	s := f.series[key]
	if s == nil {
		path, direction := flow.Path, flow.Direction()
		s = &series{
			opened: f.opened.WithLabelValues(path, direction), refused: f.refused.WithLabelValues(path, direction),
			retransmits: f.retransmits.WithLabelValues(path, direction), rtt: f.rtt.WithLabelValues(path, direction),
			sent: f.bytes.WithLabelValues(path, direction, "sent"), received: f.bytes.WithLabelValues(path, direction, "received"),
		}
		f.series[key] = s
	}
	return s
}

func newFigures() figures {
	labels := []string{"path", "direction"}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	return figures{
		series:      map[seriesKey]*series{},
		opened:      counter("sluice_flows_opened_total", "Connections of enrolled pods that opened, by the way they go.", labels...),
		refused:     counter("sluice_flows_refused_total", "Connections of enrolled pods that never opened.", labels...),
		retransmits: counter("sluice_flow_retransmits_total", "Segments sent again, as apps' sockets count them.", labels...),
		bytes:       counter("sluice_flow_bytes_total", "Bytes of apps' connections.", "path", "direction", "way"),
		rtt: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "sluice_flow_rtt_seconds", Help: "Smoothed round trip time when a connection ended; for captured ones to ztunnel.",
			Buckets: prometheus.ExponentialBuckets(0.00005, 4, 9),
		}, labels),
	}
}

// count adds what is new in now compared with old, the last known of the same connection.
func (f *figures) count(old, now *Flow) {
	series := f.of(now)
	var before Flow
	switch {
	case old != nil:
		before = *old
	case now.Refused:
		series.refused.Inc()
		return
	case now.Kind == "open":
		series.opened.Inc()
	default: // open before we looked: what it did so far is not new
		return
	}
	add := func(c prometheus.Counter, before, after uint64) {
		if after > before {
			c.Add(float64(after - before))
		}
	}
	add(series.sent, before.Sent, now.Sent)
	add(series.received, before.Received, now.Received)
	add(series.retransmits, uint64(before.Retransmits), uint64(now.Retransmits))
	if now.Kind == "close" && now.RTTMicro > 0 {
		series.rtt.Observe(float64(now.RTTMicro) / 1e6)
	}
}

func (f *figures) all() []prometheus.Collector {
	return []prometheus.Collector{f.opened, f.refused, f.retransmits, f.bytes, f.rtt}
}

var (
	openDesc = prometheus.NewDesc("sluice_flows_open", "Connections of enrolled pods that are open.", nil, nil)
	lostDesc = prometheus.NewDesc("sluice_flow_events_lost_total", "Events of connections that found no room in the kernel's buffer.", nil, nil)
)

// Describe implements prometheus.Collector.
func (t *Table) Describe(ch chan<- *prometheus.Desc) {
	ch <- openDesc
	ch <- lostDesc
	for _, c := range t.figures.all() {
		c.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (t *Table) Collect(ch chan<- prometheus.Metric) {
	t.mu.Lock()
	open, source := len(t.open), t.source
	t.mu.Unlock()
	ch <- prometheus.MustNewConstMetric(openDesc, prometheus.GaugeValue, float64(open))
	if source != nil {
		if lost, err := source.Lost(); err == nil {
			ch <- prometheus.MustNewConstMetric(lostDesc, prometheus.CounterValue, float64(lost))
		}
	}
	for _, c := range t.figures.all() {
		c.Collect(ch)
	}
}
