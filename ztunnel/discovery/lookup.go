// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// WorkloadByAddr returns the workload with an address on a network, nil if there is none. Several with the same
// address: a real pod wins, then one that speaks HBONE. Host network workloads are never found.
func (s *Store) WorkloadByAddr(network string, a netip.Addr) *Workload {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.byAddr.first(NetworkAddr{network, a.Unmap()})
}

// WorkloadByUID returns the workload with a uid, nil if there is none.
func (s *Store) WorkloadByUID(uid string) *Workload {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.workloads[uid]
}

// WorkloadsByName returns the workloads with a namespace and a name: one, unless clusters share the mesh.
func (s *Store) WorkloadsByName(namespace, name string) []*Workload {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Clone(s.byName.all(podName{namespace, name}))
}

// WorkloadByHostname returns the workload with a host name, preferably one of a namespace; nil if there is none.
func (s *Store) WorkloadByHostname(hostname, namespace string) *Workload {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, w := range s.byHost.all(hostname) {
		if w.Namespace == namespace {
			return w
		}
	}
	return s.byHost.first(hostname)
}

// WaitWorkload returns the first workload that match accepts, waiting for it to come until ctx ends.
// match is called with every workload whenever one changed, under the store's lock: it must be quick and not call back.
func (s *Store) WaitWorkload(ctx context.Context, match func(*Workload) bool) (*Workload, error) {
	sub := s.Subscribe()
	defer sub.Close()
	for {
		if w := s.findWorkload(match); w != nil {
			return w, nil
		}
		select {
		case <-sub.C():
			sub.Take()
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (s *Store) findWorkload(match func(*Workload) bool) *Workload {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, w := range s.workloads {
		if match(w) {
			return w
		}
	}
	return nil
}

// ServiceByVIP returns the service that a client reaches at an address, nil if there is none. Several with the same
// address: one in the client's namespace wins, then canonical ones. Ranges of addresses come after single ones, those of
// workloads included: they are a fall-back (ambient section 5.8).
func (s *Store) ServiceByVIP(network string, a netip.Addr, clientNamespace string) *Service {
	s.mu.RLock()
	defer s.mu.RUnlock()
	a = a.Unmap()
	if svc := choose(s.vips.all(NetworkAddr{network, a}), clientNamespace); svc != nil {
		return svc
	}
	if s.byAddr.first(NetworkAddr{network, a}) != nil {
		return nil
	}
	return s.ranges[network].find(a, clientNamespace)
}

// Service returns the service with a key, nil if there is none. Visibility plays no part.
func (s *Store) Service(key ServiceKey) *Service {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.services[key]
}

// ServiceByHostname returns the service a client means by a host name, nil if there is none: of namespace if that is not
// empty, else one in the client's, then a canonical one.
func (s *Store) ServiceByHostname(namespace, hostname, clientNamespace string) *Service {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if namespace == "" {
		return choose(s.hosts.all(hostname), clientNamespace)
	}
	if svc := s.services[ServiceKey{namespace, hostname}]; svc != nil && svc.visibleTo(clientNamespace) {
		return svc
	}
	return nil
}

// ServicesByHostname returns the services with a host name that a client may see: one in its own namespace first, then
// canonical ones, then by name.
func (s *Store) ServicesByHostname(hostname, clientNamespace string) []*Service {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var seen []*Service
	for _, svc := range s.hosts.all(hostname) {
		switch {
		case svc.Namespace == clientNamespace:
			seen = slices.Insert(seen, 0, svc)
		case svc.visibleTo(clientNamespace):
			seen = append(seen, svc)
		}
	}
	return seen
}

// Endpoints returns the workloads of a service by uid, without unhealthy ones unless the service wants them.
// The slice is shared: it must not be changed.
func (s *Store) Endpoints(key ServiceKey) []Endpoint {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.endpoints[key]
}

// PoliciesFor returns the policies that apply to connections to w: all global ones, those of its namespace, and those it
// names. Names that are not known are skipped, see [Store.MissingPolicies]. What one update takes from w without removing
// it goes on for a moment, see [fadeTime].
func (s *Store) PoliciesFor(w *Workload) []*Policy {
	s.mu.RLock()
	defer s.mu.RUnlock()
	list := slices.Concat(s.global.all(struct{}{}), s.byNamespace.all(w.Namespace))
	for _, key := range w.Policies {
		// Other scopes are in the list already, or not meant for w.
		if p := s.policies[key]; p != nil && p.Scope == PolicyWorkload {
			list = append(list, p)
		}
	}
	return append(list, s.faded(w, list)...)
}

// Workloads returns all workloads by uid.
func (s *Store) Workloads() []*Workload {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.SortedFunc(maps.Values(s.workloads), func(a, b *Workload) int { return strings.Compare(a.UID, b.UID) })
}

// Services returns all services by name.
func (s *Store) Services() []*Service {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.SortedFunc(maps.Values(s.services), func(a, b *Service) int {
		return strings.Compare(a.Key().String(), b.Key().String())
	})
}

// Policies returns all policies by name.
func (s *Store) Policies() []*Policy {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.SortedFunc(maps.Values(s.policies), func(a, b *Policy) int { return strings.Compare(a.Key(), b.Key()) })
}
