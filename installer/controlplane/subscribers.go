// SPDX-License-Identifier: Apache-2.0

package controlplane

import "sync"

// subscribers are those who wait for changes. The zero value has none. Safe for concurrent use.
type subscribers struct {
	mu       sync.Mutex
	channels map[chan struct{}]struct{}
}

// add returns a channel that is not closed, not even by cancel.
func (s *subscribers) add() (changes <-chan struct{}, cancel func()) {
	ch := make(chan struct{}, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.channels == nil {
		s.channels = map[chan struct{}]struct{}{}
	}
	s.channels[ch] = struct{}{}
	return ch, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.channels, ch)
	}
}

func (s *subscribers) tell() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ch := range s.channels {
		select {
		case ch <- struct{}{}:
		default: // a signal is waiting already, and who gets it reads the newest state
		}
	}
}
