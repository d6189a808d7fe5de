// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/sluice-mesh/sluice/internal/workloadapi"
)

// locality is where a node is, nil if it does not say.
func locality(n *Node) *workloadapi.Locality {
	if n == nil || n.Labels[corev1.LabelTopologyRegion] == "" && n.Labels[corev1.LabelTopologyZone] == "" {
		return nil
	}
	return &workloadapi.Locality{
		Region: n.Labels[corev1.LabelTopologyRegion], Zone: n.Labels[corev1.LabelTopologyZone], Subzone: n.Labels["topology.istio.io/subzone"],
	}
}

// endpointSlice refuses what would be no address. Slices of names are left to DNS.
func (c checker) endpointSlice(s *discoveryv1.EndpointSlice) error {
	if s.AddressType == discoveryv1.AddressTypeFQDN {
		return nil
	}
	for i, e := range s.Endpoints {
		for _, a := range e.Addresses {
			if _, err := netip.ParseAddr(a); err != nil {
				return c.errorf(fmt.Sprintf("endpoints[%d]", i), "%q is no IP address", a)
			}
		}
	}
	return nil
}

// addSlices gives services that select no pods the endpoints that their EndpointSlices name: known workloads become
// endpoints, and addresses that are no pod's become workloads of their own, to which nobody speaks HBONE.
func (m mesh) addSlices(s *Snapshot, workloads []*workloadapi.Workload) []*workloadapi.Workload {
	byAddress := map[string]*workloadapi.Workload{}
	for _, w := range workloads {
		if w.NetworkMode == workloadapi.NetworkMode_HOST_NETWORK {
			continue // its address is not its own
		}
		for _, a := range w.Addresses {
			byAddress[string(a)] = w
		}
	}
	for _, slice := range sortedByName(s.EndpointSlices) {
		service := s.Services[Name{Namespace: slice.Namespace, Name: slice.Labels[discoveryv1.LabelServiceName]}]
		if service == nil || len(service.Spec.Selector) > 0 || service.Spec.Type == corev1.ServiceTypeExternalName || slice.AddressType == discoveryv1.AddressTypeFQDN {
			continue
		}
		for _, e := range slice.Endpoints {
			if len(e.Addresses) == 0 {
				continue
			}
			address := addrBytes(e.Addresses[0]) // the API: clients may use the first only
			w := byAddress[string(address)]
			if w == nil {
				w = m.outsider(slice.EndpointSlice, service.Service, e)
				byAddress[string(address)] = w
				workloads = append(workloads, w)
			}
			if w.Services == nil {
				w.Services = map[string]*workloadapi.PortList{}
			}
			key := service.Namespace + "/" + m.hostname(service.Service)
			w.Services[key] = withPorts(w.Services[key], slicePorts(slice.EndpointSlice, service.Service))
		}
	}
	slices.SortStableFunc(workloads, func(a, b *workloadapi.Workload) int { return strings.Compare(a.Uid, b.Uid) })
	return workloads
}

// outsider is an endpoint that is no pod.
func (m mesh) outsider(slice *discoveryv1.EndpointSlice, s *corev1.Service, e discoveryv1.Endpoint) *workloadapi.Workload {
	w := &workloadapi.Workload{
		Uid:  m.clusterID + "/discovery.k8s.io/EndpointSlice/" + slice.Namespace + "/" + slice.Name + "/" + e.Addresses[0],
		Name: s.Name, Namespace: slice.Namespace, Addresses: [][]byte{addrBytes(e.Addresses[0])},
		ClusterId: m.clusterID, CanonicalName: s.Name, CanonicalRevision: "latest", WorkloadName: s.Name,
	}
	if ready := e.Conditions.Ready; ready != nil && !*ready {
		w.Status = workloadapi.WorkloadStatus_UNHEALTHY
	}
	return w
}

// withPorts adds ports to those of an earlier slice, which may have been about other ports of the same address.
func withPorts(before *workloadapi.PortList, ports []*workloadapi.Port) *workloadapi.PortList {
	all := &workloadapi.PortList{Ports: before.GetPorts()}
	for _, p := range ports {
		if !slices.ContainsFunc(all.Ports, func(q *workloadapi.Port) bool { return q.ServicePort == p.ServicePort }) {
			all.Ports = append(all.Ports, p)
		}
	}
	return all
}

// slicePorts pairs the ports of a slice with those of its service, which have the same names.
func slicePorts(slice *discoveryv1.EndpointSlice, s *corev1.Service) []*workloadapi.Port {
	targets := map[string]uint32{}
	for _, p := range slice.Ports {
		if p.Port != nil && (p.Protocol == nil || isTCP(*p.Protocol)) {
			name := ""
			if p.Name != nil {
				name = *p.Name
			}
			targets[name] = uint32(*p.Port)
		}
	}
	var ports []*workloadapi.Port
	for _, p := range s.Spec.Ports {
		if target, ok := targets[p.Name]; ok && isTCP(p.Protocol) {
			ports = append(ports, &workloadapi.Port{ServicePort: uint32(p.Port), TargetPort: target, AppProtocol: appProtocol(p)})
		}
	}
	return ports
}
