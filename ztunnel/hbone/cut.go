// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"crypto/tls"
	"maps"
	"slices"
)

// Cut ends at once, without another word, the connections for which reason returns an error, each as soon as it does. Their
// streams end with that error. A handshake that is under way is not asked for: whoever opens streams asks again.
func (p *Pool) Cut(reason func(tls.ConnectionState) error) {
	p.mu.Lock()
	all := slices.Collect(maps.Keys(p.all))
	p.mu.Unlock()
	for _, pc := range all {
		if err := reason(pc.c.state); err != nil {
			p.mu.Lock()
			p.removeLocked(pc)
			p.mu.Unlock()
			pc.c.kill(err)
		}
	}
}

// Cut ends at once, without another word, the connections for which reason returns an error, each as soon as it does. Their
// streams end with that error. A handshake that is under way is not asked for: the Handler asks again.
func (s *Server) Cut(reason func(tls.ConnectionState) error) {
	s.mu.Lock()
	all := slices.Collect(maps.Keys(s.conns))
	s.mu.Unlock()
	for _, c := range all {
		if err := reason(c.state); err != nil {
			c.kill(err)
		}
	}
}
