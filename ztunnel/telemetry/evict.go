// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"slices"
	"sync"
	"time"
)

// Known are the workloads that there are. What is counted of others is dropped in time, see [Metrics.Evict].
type Known struct {
	peers    map[Peer]struct{}
	services map[[2]string]struct{}
}

// Add makes a workload known. Its Principal, Region and Zone do not matter.
func (k *Known) Add(p Peer) {
	if k.peers == nil {
		k.peers, k.services = map[Peer]struct{}{}, map[[2]string]struct{}{}
	}
	k.peers[p.name()] = struct{}{}
	k.services[[2]string{p.CanonicalService, p.CanonicalRevision}] = struct{}{}
}

// name is p without what may differ from one connection to the next.
func (p Peer) name() Peer {
	p.Principal, p.Region, p.Zone = "", "", ""
	return p
}

// gone: an end of which nothing is known but its identity does not go.
func (k *Known) gone(p Peer) bool {
	if p == (Peer{Principal: p.Principal}) {
		return false
	}
	_, ok := k.peers[p.name()]
	return !ok
}

func (k *Known) serviceGone(service, revision string) bool {
	if service == "" && revision == "" {
		return false
	}
	_, ok := k.services[[2]string{service, revision}]
	return !ok
}

// Evict drops the series that name a workload which is not known, have no open connection, and were last used before
// idleSince. Without it every workload there ever was would be remembered. It returns how many sets of labels it dropped.
//
// If such a workload comes back its counters begin at 0, as after a restart.
func (m *Metrics) Evict(known *Known, idleSince time.Time) int {
	n := m.evictSeries(known, idleSince)
	n += m.dns.used.evict(idleSince, func(l DNSLabels) bool { return known.serviceGone(l.Service, l.Revision) }, m.dns.drop)
	n += m.onDemandUsed.evict(idleSince, func(l onDemandLabels) bool { return known.gone(l.source) }, func(l onDemandLabels) {
		m.onDemandDNS.DeleteLabelValues(l.values()...)
	})
	m.evicted.Add(float64(n))
	return n
}

// evictSeries holds the lock that each new connection needs for a few series at a time only.
func (m *Metrics) evictSeries(known *Known, idleSince time.Time) (n int) {
	m.mu.RLock()
	var idle []*Series
	for _, s := range m.series {
		if s.isIdle(known, idleSince) {
			idle = append(idle, s)
		}
	}
	m.mu.RUnlock()
	for batch := range slices.Chunk(idle, evictBatch) {
		n += m.evictBatch(batch, known, idleSince)
	}
	return n
}

// evictBatch is how many series are dropped at a time: well under a millisecond.
const evictBatch = 64

func (m *Metrics) evictBatch(batch []*Series, known *Known, idleSince time.Time) (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range batch {
		if !s.isIdle(known, idleSince) {
			continue
		}
		delete(m.series, s.labels)
		if s.byWord {
			m.byWord--
		}
		s.drop()
		n++
	}
	return n
}

func (s *Series) isIdle(known *Known, since time.Time) bool {
	gone := known.gone(s.labels.Source) || known.gone(s.labels.Destination)
	return gone && s.open.Load() == 0 && s.used.Load() <= since.UnixNano()
}

// uses remembers when labels were last used.
type uses[L comparable] struct {
	mu   sync.Mutex
	last map[L]time.Time
}

func (u *uses[L]) note(l L) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.last == nil {
		u.last = map[L]time.Time{}
	}
	u.last[l] = time.Now()
}

func (u *uses[L]) evict(idleSince time.Time, gone func(L) bool, drop func(L)) (n int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for l, last := range u.last {
		if gone(l) && !last.After(idleSince) {
			delete(u.last, l)
			drop(l)
			n++
		}
	}
	return n
}
