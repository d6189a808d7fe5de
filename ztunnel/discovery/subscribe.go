// SPDX-License-Identifier: Apache-2.0

package discovery

import "sync"

// Change says what is different from before.
type Change struct {
	// Policies: a policy came, changed or went.
	Policies bool
	// PolicyLists: other policies apply to some workload than before, because of the workload.
	PolicyLists bool
	// Addresses: a workload or a service came, changed or went.
	Addresses bool
}

func (c Change) or(d Change) Change {
	return Change{c.Policies || d.Policies, c.PolicyLists || d.PolicyLists, c.Addresses || d.Addresses}
}

// Subscription tells of changes to a Store. Changes that come faster than they are taken are merged, so a slow reader
// costs the store nothing.
type Subscription struct {
	store  *Store
	signal chan struct{}

	mu      sync.Mutex
	pending Change
}

// Subscribe returns a subscription to all changes from now on. The caller closes it.
func (s *Store) Subscribe() *Subscription {
	sub := &Subscription{store: s, signal: make(chan struct{}, 1)}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.subscribers[sub] = struct{}{}
	return sub
}

// C delivers when there is something to Take.
func (sub *Subscription) C() <-chan struct{} { return sub.signal }

// Take returns everything that changed since it was last called. Lookups made after it see at least those changes.
func (sub *Subscription) Take() Change {
	sub.mu.Lock()
	defer sub.mu.Unlock()
	c := sub.pending
	sub.pending = Change{}
	return c
}

// Close ends the subscription. C delivers nothing more, and is not closed.
func (sub *Subscription) Close() {
	sub.store.mu.Lock()
	defer sub.store.mu.Unlock()
	delete(sub.store.subscribers, sub)
}

// notify needs s.mu held, so that a reader who is told of a change and then looks waits until it is complete.
func (s *Store) notify(c Change) {
	if c == (Change{}) {
		return
	}
	for sub := range s.subscribers {
		sub.add(c)
	}
}

func (sub *Subscription) add(c Change) {
	sub.mu.Lock()
	sub.pending = sub.pending.or(c)
	sub.mu.Unlock()
	select {
	case sub.signal <- struct{}{}:
	default:
	}
}
