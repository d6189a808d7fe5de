// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// Priority orders the requests that wait for the CA.
type Priority int

const (
	// Background renews a certificate that is still good.
	Background Priority = iota
	// Warmup fetches ahead of the first connection.
	Warmup
	// RealTime has a connection waiting.
	RealTime
)

// Config is what a Manager needs. Zero values mean the defaults in parentheses.
type Config struct {
	CA CA
	// Concurrency is how many requests the CA gets at once (8).
	Concurrency int
	// BackoffMin is the wait after a first failure (1 s); it doubles up to BackoffMax (150 s), give or take a fifth.
	BackoffMin, BackoffMax time.Duration
	// TLS says what handshakes may agree on (TLS 1.3, all groups).
	TLS TLSPolicy
	// CRL refuses peers whose certificates were revoked (nil: none is).
	CRL    *CRL
	Logger *slog.Logger
}

// Manager holds the certificates of the identities on this node and renews them. Safe for concurrent use.
//
// Time is the time package's own; tests run it in a testing/synctest bubble rather than on an injected clock.
//
//	          Get, Hold                 slot free               half of the life is over
//	(absent) ─────────────► queued ───────────► fetching ─► held ───────────────────────► queued
//	   ▲                       ▲                   │ failed            (held until expiry meanwhile)
//	   └─ last Release, unused  └─── backoff ◄─────┘
type Manager struct {
	cfg     Config
	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	entries map[Identity]*entry
	queue   queue
	active  int // requests under way, at most cfg.Concurrency
}

// NewManager returns a manager that asks for nothing yet. The caller closes it.
func NewManager(cfg Config) *Manager {
	if cfg.Concurrency <= 0 {
		cfg.Concurrency = 8
	}
	if cfg.BackoffMin <= 0 {
		cfg.BackoffMin = time.Second
	}
	if cfg.BackoffMax <= 0 {
		cfg.BackoffMax = 150 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	m := &Manager{cfg: cfg, entries: map[Identity]*entry{}}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	return m
}

// Close cancels what is under way and waits for it. Get fails from then on.
func (m *Manager) Close() {
	m.mu.Lock()
	m.closed = true
	for _, e := range m.entries {
		m.dropLocked(e)
	}
	m.mu.Unlock()
	m.cancel()
	m.running.Wait()
}

// Get returns the certificate of id, and makes m renew it from now on.
//
// The first callers wait for the CA's first answer. When that failed, Get returns the error at once until a retry, which
// m makes by itself, succeeds. A certificate is returned until it expires, renewed or not, and never after.
// Returns [*UnavailableError], which wraps ctx's error if that ended the wait.
func (m *Manager) Get(ctx context.Context, id Identity) (*Bundle, error) {
	e := m.used(id)
	for {
		b, changed, err := m.look(e)
		if b != nil {
			return b, nil
		}
		if err == nil {
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				err = ctx.Err()
			}
		}
		return nil, &UnavailableError{Identity: id, Err: err}
	}
}

// Hold has the certificate of id fetched ahead of the first connection, and kept even if it is never used. It does not
// wait. Each Hold is taken back by one [Manager.Release], whoever else wants the same identity.
func (m *Manager) Hold(id Identity) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.entryLocked(id, Warmup).holds++
}

// Release takes one [Manager.Hold] back. The last one drops certificate and key, and callers that wait for them get
// [ErrForgotten]. More of them than of those do nothing.
func (m *Manager) Release(id Identity) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e, ok := m.entries[id]; ok && e.holds > 0 {
		e.holds--
		if e.holds == 0 {
			m.dropLocked(e)
		}
	}
}

// used returns the entry of id, marked: what was marked later could be dropped as unused in between.
func (m *Manager) used(id Identity) *entry {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.entryLocked(id, RealTime)
	e.used = true
	return e
}

// entryLocked returns the entry of id, new and queued at p if there was none. The caller marks why it is to be kept
// before it gives the lock back.
func (m *Manager) entryLocked(id Identity, p Priority) *entry {
	if e, ok := m.entries[id]; ok {
		return e
	}
	e := &entry{id: id, changed: make(chan struct{}), dropped: m.closed}
	if !m.closed {
		m.entries[id] = e
		m.enqueueLocked(e, p)
	}
	return e
}

// look returns a usable certificate, or why there is none, or else what to wait for.
func (m *Manager) look(e *entry) (*Bundle, <-chan struct{}, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e.dropped {
		return nil, nil, ErrForgotten
	}
	e.used = true
	expired := e.bundle != nil && e.bundle.Expired(time.Now())
	switch {
	case e.bundle != nil && !expired:
		return e.bundle, nil, nil
	case e.err != nil && expired:
		return nil, nil, fmt.Errorf("expired at %s, renewal: %w", stamp(e.bundle.Cert.Leaf.NotAfter), e.err)
	case e.err != nil:
		return nil, nil, e.err
	}
	// Not fetched yet, or expired before its renewal was due: the clock was set, or the machine slept.
	m.enqueueLocked(e, RealTime)
	return nil, e.changed, nil
}

// dropLocked forgets e. Its request to the CA, if under way, is cancelled and its answer ignored.
func (m *Manager) dropLocked(e *entry) {
	delete(m.entries, e.id)
	m.queue.remove(e)
	if e.timer != nil {
		e.timer.Stop()
	}
	if e.cancel != nil {
		e.cancel()
	}
	e.dropped = true
	close(e.changed)
}
