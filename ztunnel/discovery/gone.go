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
	name  string // "namespace/name" of the workload, or "namespace/hostname" of the service
	until time.Time
}

// RememberGone has the store keep addresses of the gone, see [Store.Gone], from now on. It is for a control plane that tells
// of all workloads, as istiod does: what another one no longer names may just have left the mesh.
func (s *Store) RememberGone() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remembersGone = true
}

// Gone returns the name of a workload in the mesh, or of a service with any, that had an address until about a minute ago;
// "" if there is none, the address is another workload's by now, or [Store.RememberGone] was not called. It may also be that
// of a service which is still there, and has lost its last workload.
func (s *Store) Gone(network string, a netip.Addr) string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.gone[NetworkAddr{network, a.Unmap()}].name
}

// keepGone notes addresses that w had and nobody has now. It needs s.mu.
func (s *Store) keepGone(w *Workload) {
	if w.Protocol != ProtocolHBONE {
		return
	}
	for _, a := range w.indexed() {
		if key := (NetworkAddr{w.Network, a}); len(s.byAddr.all(key)) == 0 {
			s.noteGone(key, w.Namespace+"/"+w.Name)
		}
	}
}

// keepGoneFrom notes those of the services that have lost their last workload in the mesh with w: a node's rules may lead to
// the next one before ztunnel is told of it. It needs s.mu.
func (s *Store) keepGoneFrom(w *Workload) {
	if w.Protocol != ProtocolHBONE {
		return
	}
	for key := range w.Services {
		if svc := s.services[key]; svc != nil && !s.serviceInMesh(svc) {
			s.keepGoneService(svc)
		}
	}
}

// keepGoneService needs s.mu.
func (s *Store) keepGoneService(svc *Service) {
	for _, vip := range svc.VIPs {
		s.noteGone(vip, svc.Key().String())
	}
}

func (s *Store) noteGone(key NetworkAddr, name string) {
	if !s.remembersGone {
		return
	}
	s.gone[key] = gone{name, time.Now().Add(goneTime)}
	if !s.goneTimer {
		s.goneTimer = true
		time.AfterFunc(goneTime, s.endGone)
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
