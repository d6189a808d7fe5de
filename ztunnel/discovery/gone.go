// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"net/netip"
	"time"
)

// goneTime is how long at least an address is not taken for one outside the mesh after its last workload in it is gone.
//
// What nobody knows passes in clear (ambient section 8.1), and clients use an address for some time after its pod: of a
// node that reboots, or was replaced. Their connections would go out in clear, to nobody or to the next pod that gets the
// address and that the control plane has not told of yet.
const goneTime = time.Minute

// gone is whose an address was.
type gone struct {
	workload string // "namespace/name"
	until    time.Time
}

// RememberGone has the store keep addresses of the gone, see [Store.Gone], from now on. It is for a control plane that tells
// of all workloads, as istiod does: what another one no longer names may just have left the mesh.
func (s *Store) RememberGone() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remembersGone = true
}

// Gone returns the name, "namespace/name", of a workload in the mesh that had an address until about a minute ago; "" if
// there is none, the address is another workload's by now, or [Store.RememberGone] was not called.
func (s *Store) Gone(network string, a netip.Addr) string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.gone[NetworkAddr{network, a.Unmap()}].workload
}

// keepGone notes addresses that w had and nobody has now. It needs s.mu.
func (s *Store) keepGone(w *Workload) {
	if !s.remembersGone || !w.inMesh() {
		return
	}
	for _, a := range w.indexed() {
		key := NetworkAddr{w.Network, a}
		if len(s.byAddr.all(key)) > 0 {
			continue
		}
		s.gone[key] = gone{w.Namespace + "/" + w.Name, time.Now().Add(goneTime)}
		if !s.goneTimer {
			s.goneTimer = true
			time.AfterFunc(goneTime, s.endGone)
		}
	}
}

// endGone forgets addresses whose time is over, and has those who follow the capture set look again.
func (s *Store) endGone() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, ended := time.Now(), false
	for key, g := range s.gone {
		if !now.Before(g.until) {
			delete(s.gone, key)
			ended = true
		}
	}
	if s.goneTimer = len(s.gone) > 0; s.goneTimer {
		time.AfterFunc(goneTime/4, s.endGone)
	}
	s.notify(Change{Addresses: ended})
}
