// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Flags is why a connection failed, in the reference's words.
type Flags string

// The values of the label response_flags.
const (
	FlagNone          Flags = "-"
	FlagDeny          Flags = "DENY"
	FlagConnect       Flags = "CONNECT"
	FlagTLS           Flags = "TLS_FAILURE"
	FlagH2            Flags = "H2_HANDSHAKE_FAILURE"
	FlagNetworkPolicy Flags = "NETWORK_POLICY"
	FlagIdentity      Flags = "IDENTITY_ERROR"
	FlagCertRevoked   Flags = "CERT_REVOKED"
)

// Series are the counters of all connections with the same labels: 27 labels are looked up once, not per event.
type Series struct {
	metrics                        *Metrics
	labels                         Labels
	opened, closed, sent, received prometheus.Counter

	byWord bool   // a peer's own word names it
	word   string // its identity

	open atomic.Int64 // connections; raised only with the metrics' lock held
	used atomic.Int64 // when one began or ended last, Unix time in ns

	mu    sync.Mutex
	flags map[Flags]struct{} // failures that were counted
}

// Series returns the counters for labels.
func (m *Metrics) Series(labels Labels) *Series {
	m.mu.RLock()
	s, ok := m.series[labels]
	m.mu.RUnlock()
	if ok {
		return s
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.settleLocked(labels)
	return m.seriesLocked(labels)
}

// maxByWord bounds the series that peers name by their own word, and maxByWordEach those of one identity. Nobody but them
// knows what there is.
const (
	maxByWord     = 2000
	maxByWordEach = maxByWord / 8
)

// SeriesByWord returns the counters for labels of which the far end (the source where connections arrive, the destination
// where they leave) is what the peer says of itself. What is over a bound is counted under the peer's identity alone.
func (m *Metrics) SeriesByWord(labels Labels) *Series {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.settleLocked(labels)
	if s, ok := m.series[labels]; ok {
		return s
	}
	far := &labels.Source
	if labels.Reporter == ReporterSource {
		far = &labels.Destination
	}
	word := far.Principal
	if m.byWord >= maxByWord || m.byWordOf[word] >= maxByWordEach {
		*far = Peer{Principal: word}
		m.settleLocked(labels)
		return m.seriesLocked(labels)
	}
	s := m.seriesLocked(labels)
	s.byWord, s.word = true, word
	m.byWord++
	m.byWordOf[word]++
	return s
}

// forgetWordLocked gives back the room of a series that a peer named.
func (m *Metrics) forgetWordLocked(s *Series) {
	m.byWord--
	if m.byWordOf[s.word]--; m.byWordOf[s.word] == 0 {
		delete(m.byWordOf, s.word)
	}
}

func (m *Metrics) seriesLocked(labels Labels) *Series {
	s, ok := m.series[labels]
	if ok {
		return s
	}
	values := labels.values(string(FlagNone))
	s = &Series{
		metrics: m, labels: labels, flags: map[Flags]struct{}{},
		opened: m.opened.WithLabelValues(values...), closed: m.closed.WithLabelValues(values...),
		sent: m.sent.WithLabelValues(values...), received: m.received.WithLabelValues(values...),
	}
	s.used.Store(time.Now().UnixNano())
	m.series[labels] = s
	return s
}

// Open counts a new connection. The caller ends it with [Conn.Close].
func (s *Series) Open() *Conn {
	for !s.enter() {
		s = s.metrics.Series(s.labels) // evicted since it was looked up
	}
	s.opened.Inc()
	return &Conn{series: s}
}

// enter keeps s from being evicted, unless it has been already.
func (s *Series) enter() bool {
	s.metrics.mu.RLock()
	defer s.metrics.mu.RUnlock()
	if s.metrics.series[s.labels] != s {
		return false
	}
	s.open.Add(1)
	return true
}

func (s *Series) failed(flags Flags) {
	s.mu.Lock()
	s.flags[flags] = struct{}{}
	s.mu.Unlock()
	s.metrics.failed.WithLabelValues(s.labels.values(string(flags))...).Inc()
}

// drop takes what s counted out of the metrics.
func (s *Series) drop() {
	values := s.labels.values(string(FlagNone))
	for _, v := range []*prometheus.CounterVec{s.metrics.opened, s.metrics.closed, s.metrics.sent, s.metrics.received} {
		v.DeleteLabelValues(values...)
	}
	for flags := range s.flags {
		s.metrics.failed.DeleteLabelValues(s.labels.values(string(flags))...)
	}
}

// Conn counts one connection. Safe for concurrent use.
type Conn struct {
	series *Series

	mu             sync.Mutex
	closed         bool
	sent, received uint64
}

// Progress sets the bytes so far: received from the initiator, sent back to it. A smaller number than before is ignored:
// bytes counted while they flowed stay counted.
func (c *Conn) Progress(received, sent uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.progressLocked(received, sent)
	}
}

func (c *Conn) progressLocked(received, sent uint64) {
	if received > c.received {
		c.series.received.Add(float64(received - c.received))
		c.received = received
	}
	if sent > c.sent {
		c.series.sent.Add(float64(sent - c.sent))
		c.sent = sent
	}
}

// Close counts the end with the final byte counts, and as failed too unless flags is FlagNone. Later calls do nothing.
func (c *Conn) Close(received, sent uint64, flags Flags) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	c.progressLocked(received, sent)
	c.closed = true
	c.series.closed.Inc()
	if flags != FlagNone {
		c.series.failed(flags)
	}
	c.series.used.Store(time.Now().UnixNano())
	c.series.open.Add(-1)
}
