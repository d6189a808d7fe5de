// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net/netip"
	"sync"
)

// client is a plaintext connection that ztunnel accepted for the pod, as both ends see it.
type client struct {
	from, to netip.AddrPort
}

// clients are those there are. A delivery to the same port of the pod must not come from the same port of the client:
// see [inpod.Avoid]. The zero value is empty.
type clients struct {
	mu  sync.Mutex
	set map[client]struct{}
}

// add returns the function that takes c out again.
func (s *clients) add(c client) (remove func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.set == nil {
		s.set = map[client]struct{}{}
	}
	s.set[c] = struct{}{}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.set, c)
	}
}

func (s *clients) has(c client) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.set[c]
	return ok
}
