// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"maps"
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

// Evict drops the series that name a workload which is not known, or that a peer named, have no open connection, and were
// last used before idleSince. Without it every workload there ever was would be remembered. It returns how many sets of labels it dropped.
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

// evictSeries holds the lock that each new connection needs only to list the series, and to take a few at a time.
func (m *Metrics) evictSeries(known *Known, idleSince time.Time) (n int) {
	m.mu.RLock()
	all := slices.Collect(maps.Values(m.series))
	m.mu.RUnlock()
	idle := slices.DeleteFunc(all, func(s *Series) bool { return !s.isIdle(known, idleSince) })
	for batch := range slices.Chunk(idle, batchSize) {
		n += m.evictBatch(batch, known, idleSince)
	}
	return n
}

// batchSize is how many series are taken at a time.
const batchSize = 64

// evictBatch drops without the lock: that waits for a scrape in progress.
func (m *Metrics) evictBatch(batch []*Series, known *Known, idleSince time.Time) int {
	taken := m.takeIdle(batch, known, idleSince)
	for _, s := range taken {
		s.drop()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range taken {
		delete(m.dropping, s.labels)
	}
	m.dropped.Broadcast()
	return len(taken)
}

// takeIdle takes those of batch that are still idle out of use. Until they leave m.dropping nobody may count under their
// labels: it would be dropped with them.
func (m *Metrics) takeIdle(batch []*Series, known *Known, idleSince time.Time) (taken []*Series) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range batch {
		if m.series[s.labels] != s || !s.isIdle(known, idleSince) {
			continue
		}
		delete(m.series, s.labels)
		m.dropping[s.labels] = struct{}{}
		if s.byWord {
			m.forgetWordLocked(s)
		}
		taken = append(taken, s)
	}
	return taken
}

// settleLocked waits until labels are not being dropped. It gives up the lock meanwhile.
func (m *Metrics) settleLocked(labels Labels) {
	for {
		if _, ok := m.dropping[labels]; !ok {
			return
		}
		m.dropped.Wait()
	}
}

// isIdle: what a peer named may name a workload that is known here, and yet be one of many that it made up.
func (s *Series) isIdle(known *Known, since time.Time) bool {
	gone := s.byWord || known.gone(s.labels.Source) || known.gone(s.labels.Destination)
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
