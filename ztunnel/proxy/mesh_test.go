// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net/netip"

	"github.com/sluice-mesh/sluice/ztunnel/discovery"
)

// pod returns a workload that speaks HBONE, with the fields the parser fills in. edits change it.
func pod(name, ip string, edits ...func(*discovery.Workload)) *discovery.Workload {
	w := &discovery.Workload{
		UID: "Kubernetes//Pod/default/" + name, Name: name, Namespace: "default", Addresses: []netip.Addr{netip.MustParseAddr(ip)},
		Protocol: discovery.ProtocolHBONE, TrustDomain: "cluster.local", ServiceAccount: name, Node: "node1",
		CanonicalName: name, WorkloadName: name, WorkloadType: 2, Healthy: true, ClusterID: "Kubernetes", Capacity: 1,
	}
	for _, edit := range edits {
		edit(w)
	}
	return w
}

func plainTCP(w *discovery.Workload) { w.Protocol = discovery.ProtocolTCP }

func withAddr(ip string) func(*discovery.Workload) {
	return func(w *discovery.Workload) { w.Addresses = append(w.Addresses, netip.MustParseAddr(ip)) }
}

func withWaypoint(gw *discovery.Gateway) func(*discovery.Workload) {
	return func(w *discovery.Workload) { w.Waypoint = gw }
}

// serving makes a workload an endpoint of the service name.default, with port pairs service, target.
func serving(name string, ports ...uint16) func(*discovery.Workload) {
	return func(w *discovery.Workload) {
		if w.Services == nil {
			w.Services = map[discovery.ServiceKey]map[uint16]uint16{}
		}
		w.Services[serviceKey(name)] = portMap(ports)
	}
}

func serviceKey(name string) discovery.ServiceKey {
	return discovery.ServiceKey{Namespace: "default", Hostname: name + ".default.svc.cluster.local"}
}

func portMap(pairs []uint16) map[uint16]uint16 {
	m := map[uint16]uint16{}
	for i := 0; i+1 < len(pairs); i += 2 {
		m[pairs[i]] = pairs[i+1]
	}
	return m
}

func service(name, vip string, ports []uint16, edits ...func(*discovery.Service)) *discovery.Service {
	key := serviceKey(name)
	s := &discovery.Service{Name: name, Namespace: key.Namespace, Hostname: key.Hostname, Ports: portMap(ports), Canonical: true}
	if vip != "" {
		s.VIPs = []discovery.NetworkAddr{{Addr: netip.MustParseAddr(vip)}}
	}
	for _, edit := range edits {
		edit(s)
	}
	return s
}

func gatewayAt(ip string) *discovery.Gateway {
	return &discovery.Gateway{Address: discovery.NetworkAddr{Addr: netip.MustParseAddr(ip)}, Port: 15008}
}

func gatewayNamed(name string) *discovery.Gateway {
	return &discovery.Gateway{Hostname: serviceKey(name), Port: 15008}
}

func storeOf(things ...any) *discovery.Store {
	var u discovery.Update
	for _, thing := range things {
		switch x := thing.(type) {
		case *discovery.Workload:
			u.Workloads = append(u.Workloads, x)
		case *discovery.Service:
			u.Services = append(u.Services, x)
		case *discovery.Policy:
			u.Policies = append(u.Policies, x)
		}
	}
	s := discovery.NewStore()
	s.Apply(u)
	return s
}
