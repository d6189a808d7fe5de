// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"container/heap"
	"context"
	"math/rand/v2"
	"time"
)

// entry is one identity's certificate, guarded by Manager.mu.
type entry struct {
	id      Identity
	holds   int  // not released yet: kept without being used
	used    bool // asked for since the last success, or since failures became rare
	dropped bool

	bundle   *Bundle       // the last good one; may have expired
	err      error         // the last failure, nil after a success
	failures int           // in a row
	changed  chan struct{} // closed with each result, then replaced; closed for good when dropped

	state    state
	priority Priority
	order    uint64 // of entering the queue
	index    int    // in the queue
	timer    *time.Timer
	turn     int // counts timers, so that one that fired late is known
	cancel   context.CancelFunc
}

type state int

const (
	idle     state = iota // a timer will queue it
	queued                // waits for a slot
	fetching              // asks the CA
)

// enqueueLocked has e fetched at p, or at its present priority if that is higher. Nothing to do if it is being fetched.
func (m *Manager) enqueueLocked(e *entry, p Priority) {
	switch e.state {
	case idle:
		if e.timer != nil {
			e.timer.Stop()
		}
		e.state, e.priority = queued, p
		m.queue.push(e)
		m.startLocked()
	case queued:
		m.queue.raise(e, p)
	}
}

// startLocked hands the most urgent entries to the CA as long as there are free slots.
func (m *Manager) startLocked() {
	for !m.closed && m.active < m.cfg.Concurrency && m.queue.Len() > 0 {
		e := m.queue.pop()
		e.state = fetching
		var ctx context.Context
		ctx, e.cancel = context.WithCancel(m.ctx)
		m.active++
		m.running.Go(func() { m.fetch(ctx, e) })
	}
}

// fetch asks the CA once and records the result.
func (m *Manager) fetch(ctx context.Context, e *entry) {
	b, err := m.request(ctx, e.id)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.active--
	e.cancel()
	if !e.dropped {
		m.finishLocked(e, b, err)
	}
	m.startLocked()
}

func (m *Manager) request(ctx context.Context, id Identity) (*Bundle, error) {
	if err := id.Validate(); err != nil {
		return nil, err
	}
	key, csr, err := newRequest(id)
	if err != nil {
		return nil, err
	}
	chain, err := m.cfg.CA.Sign(ctx, id, csr)
	if err != nil {
		return nil, err
	}
	b, err := newBundle(id, key, chain, time.Now())
	if err == nil {
		m.cfg.CRL.learn(b.issuers())
	}
	return b, err
}

func (m *Manager) finishLocked(e *entry, b *Bundle, err error) {
	e.state = idle
	e.err = err
	if err != nil {
		e.failures++
		wait := m.backoff(e.failures)
		if wait >= m.cfg.BackoffMax/2 && (e.bundle == nil || e.bundle.Expired(time.Now())) {
			e.used = false // what the CA refuses and nobody asks for any more is dropped by due
		}
		m.cfg.Logger.Warn("certificate request failed", "identity", e.id.String(), "retry_in", wait, "error", err)
		m.scheduleLocked(e, wait)
	} else {
		e.bundle, e.failures, e.used = b, 0, false
		m.cfg.Logger.Info("certificate received", "identity", e.id.String(), "expires", b.Cert.Leaf.NotAfter)
		m.scheduleLocked(e, m.renewIn(b))
	}
	close(e.changed)
	e.changed = make(chan struct{})
}

// renewIn is half-life: not_before + validity/2. A certificate that is older than that when it comes is renewed
// after half of what remains.
func (m *Manager) renewIn(b *Bundle) time.Duration {
	now := time.Now()
	if wait := b.halfLife().Sub(now); wait > 0 {
		return wait
	}
	return max(b.Cert.Leaf.NotAfter.Sub(now)/2, m.cfg.BackoffMin)
}

// backoff doubles with each failure in a row, give or take a fifth so that nodes do not retry in step.
func (m *Manager) backoff(failures int) time.Duration {
	wait := m.cfg.BackoffMin
	for i := 1; i < failures && wait < m.cfg.BackoffMax; i++ {
		wait *= 2
	}
	return time.Duration(float64(min(wait, m.cfg.BackoffMax)) * (0.8 + 0.4*rand.Float64()))
}

func (m *Manager) scheduleLocked(e *entry, wait time.Duration) {
	e.turn++
	turn := e.turn
	e.timer = time.AfterFunc(wait, func() { m.due(e, turn) })
}

// due queues the renewal or retry of e. An entry that nobody holds nor used since its certificate came is dropped
// instead: a Get that raced with Release must not renew for ever.
func (m *Manager) due(e *entry, turn int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e.dropped || e.state != idle || e.turn != turn {
		return
	}
	if !e.used && e.holds == 0 {
		m.dropLocked(e)
		return
	}
	m.enqueueLocked(e, Background)
}

// queue holds entries in state queued, the most urgent first, then the one that came first.
type queue struct {
	heap    entryHeap
	counter uint64
}

func (q *queue) Len() int { return len(q.heap) }

func (q *queue) push(e *entry) {
	q.counter++
	e.order = q.counter
	heap.Push(&q.heap, e)
}

func (q *queue) pop() *entry { return heap.Pop(&q.heap).(*entry) }

func (q *queue) raise(e *entry, p Priority) {
	if p > e.priority {
		e.priority = p
		heap.Fix(&q.heap, e.index)
	}
}

func (q *queue) remove(e *entry) {
	if e.state == queued {
		heap.Remove(&q.heap, e.index)
		e.state = idle
	}
}

type entryHeap []*entry

func (h entryHeap) Len() int { return len(h) }

func (h entryHeap) Less(i, j int) bool {
	if h[i].priority != h[j].priority {
		return h[i].priority > h[j].priority
	}
	return h[i].order < h[j].order
}

func (h entryHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *entryHeap) Push(x any) {
	e := x.(*entry)
	e.index = len(*h)
	*h = append(*h, e)
}

func (h *entryHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return e
}
