// SPDX-License-Identifier: Apache-2.0

// Package inpod serves the pods that the agent names: it speaks ZDS, keeps the table of pods, and makes sockets inside
// their network namespaces. What happens on those sockets is somebody else's ([StartFunc]).
//
//	            Add, sockets open
//	unknown ──────────────────────► running ── Del, or not in the snapshot ──► stopped
//	   │                              ▲  ▲ └── Add, same namespace: nothing
//	   │ Add, no sockets              │  └──── Add, other namespace: the old one drains
//	   └────────────► pending ────────┘
//	                    every 5 s
package inpod

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// Manager is the table of pods. Make one with all exported fields set; then [Client] feeds it.
type Manager struct {
	Sockets  *Sockets
	Listen   ListenFunc
	Start    StartFunc
	Observer Observer
	Log      *slog.Logger
	// ListenTimeout bounds one call of Listen; it must stay below the agent's 5 s for an answer. 0 means 3 s.
	ListenTimeout time.Duration

	mu   sync.Mutex // not held while Listen, Drain or Stop run
	pods map[string]*entry
	gone bool // draining: nothing is added any more
	// limit ends when drains in progress must not wait any longer.
	limit    context.Context
	endLimit context.CancelFunc

	stopping sync.WaitGroup
}

// entry is a pod in the table. proxy is nil while pending.
type entry struct {
	pod       *Pod
	listeners *Listeners
	proxy     Proxy
}

// Add serves a pod and returns when its sockets are open. It takes ownership of fd, the pod's network namespace.
//
// Adding a pod again is fine. On error the pod is pending: it is in the table, and [Manager.Retry] tries again.
func (m *Manager) Add(ctx context.Context, info Info, fd int) error {
	pod, err := NewPod(info, fd, m.Sockets)
	if err != nil {
		return fmt.Errorf("add pod %s: %w", info, err)
	}
	e, fresh := m.admit(pod)
	if !fresh {
		pod.close()
	}
	return m.serve(ctx, e)
}

// admit returns the entry for pod, a new one unless the same namespace is already there.
func (m *Manager) admit(pod *Pod) (e *entry, fresh bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.pods == nil {
		m.pods = map[string]*entry{}
		m.limit, m.endLimit = context.WithCancel(context.Background())
	}
	old, ok := m.pods[pod.UID]
	if ok && old.pod.ID == pod.ID && old.pod.Info == pod.Info {
		return old, false
	}
	if ok {
		m.Log.Info("pod has another network namespace or identity; the old one drains", "pod", pod.String(), "uid", pod.UID)
		limit := m.limit
		m.endLocked(old, func(p Proxy) { p.Drain(limit) })
	}
	e = &entry{pod: pod}
	m.pods[pod.UID] = e
	m.countLocked()
	return e, true
}

// serve gets the entry's listeners and starts its proxy, or refreshes the listeners of a running one.
func (m *Manager) serve(ctx context.Context, e *entry) error {
	timeout := m.ListenTimeout
	if timeout == 0 {
		timeout = 3 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	m.mu.Lock()
	held := e.listeners
	m.mu.Unlock()

	l, err := m.Listen(ctx, e.pod, held)
	if err != nil {
		if held != nil {
			// The pod is served all the same, by sockets that still work.
			m.Log.Warn("listeners could not be compared with the agent's", "pod", e.pod.String(), "error", err)
			return nil
		}
		return fmt.Errorf("serve pod %s: %w", e.pod, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.gone || m.pods[e.pod.UID] != e || e.listeners != held {
		if l != held {
			l.Close()
		}
		if e.listeners != held && !m.gone {
			return nil // another call was faster
		}
		return fmt.Errorf("serve pod %s: no longer wanted", e.pod)
	}
	if l == held {
		return nil
	}
	e.listeners = l
	if e.proxy != nil {
		e.proxy.Replace(l)
		return nil
	}
	e.proxy = m.Start(e.pod, l)
	m.Observer.Started()
	m.countLocked()
	m.Log.Info("pod is served", "pod", e.pod.String(), "uid", e.pod.UID, "sa", e.pod.ServiceAccount)
	return nil
}

// Del stops serving a pod at once: its network is about to go. Unknown pods are fine.
func (m *Manager) Del(uid string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.deleteLocked(uid)
}

// Retain stops every pod that keep does not want.
func (m *Manager) Retain(keep func(uid string) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for uid := range m.pods {
		if !keep(uid) {
			m.deleteLocked(uid)
		}
	}
}

func (m *Manager) deleteLocked(uid string) {
	e, ok := m.pods[uid]
	if !ok {
		return
	}
	delete(m.pods, uid)
	m.Log.Info("pod is no longer served", "pod", e.pod.String(), "uid", uid)
	m.endLocked(e, Proxy.Stop)
	m.countLocked()
}

// endLocked ends an entry in the background, because ending waits for connections.
func (m *Manager) endLocked(e *entry, end func(Proxy)) {
	m.stopping.Go(func() {
		if e.proxy != nil {
			end(e.proxy)
			m.Observer.Stopped()
		}
		e.pod.close()
	})
}

// Retry tries once more to serve each pending pod.
func (m *Manager) Retry(ctx context.Context) {
	m.mu.Lock()
	var pending []*entry
	for _, e := range m.pods {
		if e.proxy == nil {
			pending = append(pending, e)
		}
	}
	m.mu.Unlock()
	for _, e := range pending {
		if err := m.serve(ctx, e); err != nil && ctx.Err() == nil {
			m.Log.Warn("pod is still not served", "error", err)
		}
	}
}

// Pending is the number of pods that wait for a retry.
func (m *Manager) Pending() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, pending := m.countsLocked()
	return pending
}

// Drain stops accepting in every pod, and returns when all connections ended; what is left when ctx ends is cut.
func (m *Manager) Drain(ctx context.Context) {
	m.mu.Lock()
	m.gone = true
	if m.endLimit != nil {
		defer context.AfterFunc(ctx, m.endLimit)()
	}
	for uid, e := range m.pods {
		delete(m.pods, uid)
		m.endLocked(e, func(p Proxy) { p.Drain(ctx) })
	}
	m.mu.Unlock()
	m.stopping.Wait()
}

func (m *Manager) countLocked() { m.Observer.Counts(m.countsLocked()) }

func (m *Manager) countsLocked() (running, pending int) {
	for _, e := range m.pods {
		if e.proxy != nil {
			running++
		} else {
			pending++
		}
	}
	return running, pending
}
