// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"net/netip"
	"reflect"
	"strings"
	"sync"
)

// Store holds what is known of the mesh. Safe for concurrent use; lookups never wait for the control plane.
//
// Endpoints are rebuilt from the workloads whenever one of either side changes, so neither the order in which records
// come nor a service that goes and comes back matters.
type Store struct {
	mu sync.RWMutex

	workloads map[string]*Workload
	byAddr    index[NetworkAddr, *Workload]
	byName    index[podName, *Workload]
	byHost    index[string, *Workload]
	members   map[ServiceKey]map[string]*Workload // by uid; also for services that are not known yet

	services  map[ServiceKey]*Service
	endpoints map[ServiceKey][]Endpoint // of known services, by uid; slices are replaced, never changed
	hosts     index[string, *Service]
	vips      index[NetworkAddr, *Service]
	ranges    map[string]*prefixes // CIDR VIPs by network

	policies    map[string]*Policy
	global      index[struct{}, *Policy]
	byNamespace index[string, *Policy]
	fadings     map[string]map[string]fading // by the workload's uid, and the policy's name; mostly empty
	fadeTimer   bool                         // endFades will be called

	remembersGone bool
	gone          map[NetworkAddr]gone // addresses of no workload
	goneTimer     bool                 // endGone will be called

	subscribers map[*Subscription]struct{}
}

type podName struct{ namespace, name string }

// NewStore returns an empty store.
func NewStore() *Store {
	byUID := func(a, b *Workload) int { return strings.Compare(a.UID, b.UID) }
	byKey := func(a, b *Policy) int { return strings.Compare(a.Key(), b.Key()) }
	return &Store{
		workloads:   map[string]*Workload{},
		byAddr:      newIndex[NetworkAddr](betterAtAddress),
		byName:      newIndex[podName](byUID),
		byHost:      newIndex[string](byUID),
		members:     map[ServiceKey]map[string]*Workload{},
		services:    map[ServiceKey]*Service{},
		endpoints:   map[ServiceKey][]Endpoint{},
		hosts:       newIndex[string](preferred),
		vips:        newIndex[NetworkAddr](preferred),
		ranges:      map[string]*prefixes{},
		policies:    map[string]*Policy{},
		global:      newIndex[struct{}](byKey),
		byNamespace: newIndex[string](byKey),
		fadings:     map[string]map[string]fading{},
		gone:        map[NetworkAddr]gone{},
		subscribers: map[*Subscription]struct{}{},
	}
}

// Update is a set of changes that lookups see all at once. Records are put first, in order, then removals follow.
// The records belong to the store from then on.
type Update struct {
	Workloads []*Workload
	Services  []*Service
	Policies  []*Policy
	// RemoveAddresses are names on the wire: "namespace/hostname" is a service, anything else a workload's uid.
	RemoveAddresses []string
	// RemovePolicies are "namespace/name".
	RemovePolicies []string
}

// Apply makes the changes and tells subscribers, unless everything was as the update says already. It returns what
// changed.
func (s *Store) Apply(u Update) Change {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := changes{endpoints: map[ServiceKey]struct{}{}}
	for _, w := range u.Workloads {
		s.putWorkload(w, &c)
	}
	for _, svc := range u.Services {
		s.putService(svc, &c)
	}
	for _, p := range u.Policies {
		s.putPolicy(p, &c)
	}
	for _, name := range u.RemoveAddresses {
		s.removeAddress(name, &c)
	}
	for _, key := range u.RemovePolicies {
		s.removePolicy(key, &c)
	}
	for key := range c.endpoints {
		s.rebuildEndpoints(key)
	}
	s.notify(c.Change)
	return c.Change
}

// changes gathers what an update did.
type changes struct {
	Change
	endpoints map[ServiceKey]struct{} // to rebuild
}

func (s *Store) removeAddress(name string, c *changes) {
	if namespace, hostname, ok := strings.Cut(name, "/"); ok && !strings.Contains(hostname, "/") {
		key := ServiceKey{namespace, hostname}
		if svc := s.services[key]; svc != nil {
			if s.serviceInMesh(svc) {
				s.keepGoneService(svc)
			}
			s.dropService(svc, c)
			return
		}
	}
	// One slash does not make a service: a uid may have one too, and removing what is unknown does nothing.
	if w := s.workloads[name]; w != nil {
		delete(s.fadings, name)
		s.dropWorkload(w, c)
		s.keepGone(w)
		s.keepGoneFrom(w)
	}
}

func (s *Store) putWorkload(w *Workload, c *changes) {
	old := s.workloads[w.UID]
	if old != nil {
		if reflect.DeepEqual(old, w) {
			return
		}
		s.fadeUnlisted(old, w)
		s.dropWorkload(old, c)
	}
	c.Addresses = true
	if old == nil || !reflect.DeepEqual(old.Policies, w.Policies) || old.Namespace != w.Namespace {
		c.PolicyLists = true
	}
	s.workloads[w.UID] = w
	s.byName.add(podName{w.Namespace, w.Name}, w)
	if w.Hostname != "" {
		s.byHost.add(w.Hostname, w)
	}
	for _, a := range w.indexed() {
		s.byAddr.add(NetworkAddr{w.Network, a}, w)
		delete(s.gone, NetworkAddr{w.Network, a})
	}
	if old != nil {
		s.keepGone(old)
	}
	for key := range w.Services {
		if s.members[key] == nil {
			s.members[key] = map[string]*Workload{}
		}
		s.members[key][w.UID] = w
		c.endpoints[key] = struct{}{}
	}
}

// indexed are the addresses the workload can be found by.
func (w *Workload) indexed() []netip.Addr {
	if w.HostNetwork {
		return nil
	}
	return w.Addresses
}

func (s *Store) dropWorkload(w *Workload, c *changes) {
	c.Addresses = true
	delete(s.workloads, w.UID)
	s.byName.remove(podName{w.Namespace, w.Name}, w)
	if w.Hostname != "" {
		s.byHost.remove(w.Hostname, w)
	}
	for _, a := range w.indexed() {
		s.byAddr.remove(NetworkAddr{w.Network, a}, w)
	}
	for key := range w.Services {
		delete(s.members[key], w.UID)
		if len(s.members[key]) == 0 {
			delete(s.members, key)
		}
		c.endpoints[key] = struct{}{}
	}
}

func (s *Store) putService(svc *Service, c *changes) {
	key := svc.Key()
	if old := s.services[key]; old != nil {
		if reflect.DeepEqual(old, svc) {
			return
		}
		s.dropService(old, c)
	}
	c.Addresses = true
	s.services[key] = svc
	s.hosts.add(svc.Hostname, svc)
	for _, vip := range svc.VIPs {
		s.vips.add(vip, svc)
	}
	for _, r := range svc.CIDRVIPs {
		if s.ranges[r.Network] == nil {
			s.ranges[r.Network] = newPrefixes()
		}
		s.ranges[r.Network].add(r.Prefix, svc)
	}
	c.endpoints[key] = struct{}{}
}

func (s *Store) dropService(svc *Service, c *changes) {
	key := svc.Key()
	c.Addresses = true
	delete(s.services, key)
	s.hosts.remove(svc.Hostname, svc)
	for _, vip := range svc.VIPs {
		s.vips.remove(vip, svc)
	}
	for _, r := range svc.CIDRVIPs {
		s.ranges[r.Network].remove(r.Prefix, svc)
	}
	c.endpoints[key] = struct{}{}
}

func (s *Store) rebuildEndpoints(key ServiceKey) {
	svc := s.services[key]
	if svc == nil {
		delete(s.endpoints, key)
		return
	}
	members := s.members[key]
	list := make([]Endpoint, 0, len(members))
	for _, uid := range sortedKeys(members, strings.Compare) {
		if w := members[uid]; w.Healthy || svc.LoadBalancing.AllowUnhealthy {
			list = append(list, Endpoint{Workload: w, Ports: w.Services[key]})
		}
	}
	s.endpoints[key] = list
}

func (s *Store) putPolicy(p *Policy, c *changes) {
	if old := s.policies[p.Key()]; old != nil {
		if reflect.DeepEqual(old, p) {
			return
		}
		s.dropPolicy(old, c)
		if p.narrows(old) {
			s.fade(old, byScope)
		}
	}
	c.Policies = true
	s.policies[p.Key()] = p
	switch p.Scope {
	case PolicyGlobal:
		s.global.add(struct{}{}, p)
	case PolicyNamespace:
		s.byNamespace.add(p.Namespace, p)
	}
}

func (s *Store) removePolicy(key string, c *changes) {
	if p := s.policies[key]; p != nil {
		s.dropFades(key)
		s.dropPolicy(p, c)
	}
}

func (s *Store) dropPolicy(p *Policy, c *changes) {
	c.Policies = true
	delete(s.policies, p.Key())
	s.global.remove(struct{}{}, p)
	s.byNamespace.remove(p.Namespace, p)
}
