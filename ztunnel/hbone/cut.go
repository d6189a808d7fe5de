// SPDX-License-Identifier: Apache-2.0

package hbone

import "crypto/tls"

// Cut ends at once, without another word, the connections for which reason returns an error. Their streams end with that
// error. A handshake that is under way is not asked for: whoever opens streams asks again.
func (p *Pool) Cut(reason func(tls.ConnectionState) error) {
	p.mu.Lock()
	all := make(map[*pooled]error)
	for pc := range p.all {
		if err := reason(pc.c.state); err != nil {
			p.removeLocked(pc)
			all[pc] = err
		}
	}
	p.mu.Unlock()
	for pc, err := range all {
		pc.c.kill(err)
	}
}

// Cut ends at once, without another word, the connections for which reason returns an error. Their streams end with that
// error. A handshake that is under way is not asked for: the Handler asks again.
func (s *Server) Cut(reason func(tls.ConnectionState) error) {
	s.mu.Lock()
	all := make(map[*conn]error)
	for c := range s.conns {
		if err := reason(c.state); err != nil {
			all[c] = err
		}
	}
	s.mu.Unlock()
	for c, err := range all {
		c.kill(err)
	}
}
