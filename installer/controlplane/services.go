// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/sluice-mesh/sluice/internal/workloadapi"
)

// service translates a Service, nil for one that is not published.
func (m mesh) service(s *corev1.Service) *workloadapi.Service {
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	out := &workloadapi.Service{
		Name:          s.Name,
		Namespace:     s.Namespace,
		Hostname:      m.hostname(s),
		LoadBalancing: loadBalancing(s),
		IpFamilies:    ipFamilies(s),
		Canonical:     true,
	}
	for _, ip := range clusterIPs(s) {
		out.Addresses = append(out.Addresses, &workloadapi.NetworkAddress{Address: addrBytes(ip)})
	}
	for _, p := range s.Spec.Ports {
		if isTCP(p.Protocol) {
			out.Ports = append(out.Ports, &workloadapi.Port{
				ServicePort: uint32(p.Port), TargetPort: numericTarget(p), AppProtocol: appProtocol(p),
			})
		}
	}
	return out
}

func (m mesh) hostname(s *corev1.Service) string {
	return s.Name + "." + s.Namespace + ".svc." + m.dnsDomain
}

// numericTarget is the port on the pod, 0 if it goes by a name that each pod resolves by itself. The API server's
// default, the service's own port, is filled in here: files come without it.
func numericTarget(p corev1.ServicePort) uint32 {
	switch {
	case p.TargetPort.Type == intstr.String && p.TargetPort.StrVal != "":
		return 0
	case p.TargetPort.IntVal != 0:
		return uint32(p.TargetPort.IntVal)
	default:
		return uint32(p.Port)
	}
}

// endpoints are the services that a pod is an endpoint of, with the ports it serves them on.
func (m mesh) endpoints(p *corev1.Pod, services []*Service) map[string]*workloadapi.PortList {
	out := map[string]*workloadapi.PortList{}
	for _, s := range services {
		if s.Namespace != p.Namespace || len(s.Spec.Selector) == 0 || s.Spec.Type == corev1.ServiceTypeExternalName ||
			!selects(s.Spec.Selector, p.Labels) {
			continue
		}
		out[s.Namespace+"/"+m.hostname(s.Service)] = &workloadapi.PortList{Ports: endpointPorts(p, s.Service)}
	}
	return out
}

// endpointPorts leaves out ports whose name no container of the pod declares.
func endpointPorts(p *corev1.Pod, s *corev1.Service) []*workloadapi.Port {
	var ports []*workloadapi.Port
	for _, sp := range s.Spec.Ports {
		if !isTCP(sp.Protocol) {
			continue
		}
		target := numericTarget(sp)
		if target == 0 {
			target = containerPort(p, sp.TargetPort.StrVal)
		}
		if target != 0 {
			ports = append(ports, &workloadapi.Port{ServicePort: uint32(sp.Port), TargetPort: target, AppProtocol: appProtocol(sp)})
		}
	}
	return ports
}

// containerPort resolves the name of a TCP port, 0 if there is none. Init containers count where they keep running.
func containerPort(p *corev1.Pod, name string) uint32 {
	for _, c := range p.Spec.Containers {
		if port := portNamed(c.Ports, name); port != 0 {
			return port
		}
	}
	for _, c := range p.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			if port := portNamed(c.Ports, name); port != 0 {
				return port
			}
		}
	}
	return 0
}

func portNamed(ports []corev1.ContainerPort, name string) uint32 {
	for _, cp := range ports {
		if cp.Name == name && isTCP(cp.Protocol) && cp.ContainerPort > 0 && cp.ContainerPort <= 65535 {
			return uint32(cp.ContainerPort)
		}
	}
	return 0
}

// loadBalancing is nil where nothing but the default is asked for.
func loadBalancing(s *corev1.Service) *workloadapi.LoadBalancing {
	lb := &workloadapi.LoadBalancing{}
	if s.Spec.PublishNotReadyAddresses {
		lb.HealthPolicy = workloadapi.LoadBalancing_ALLOW_ALL
	}
	if policy := s.Spec.InternalTrafficPolicy; policy != nil && *policy == corev1.ServiceInternalTrafficPolicyLocal {
		lb.Mode = workloadapi.LoadBalancing_STRICT
		lb.RoutingPreference = []workloadapi.LoadBalancing_Scope{workloadapi.LoadBalancing_NODE}
		return lb
	}
	zone := []workloadapi.LoadBalancing_Scope{workloadapi.LoadBalancing_NETWORK, workloadapi.LoadBalancing_REGION, workloadapi.LoadBalancing_ZONE}
	switch trafficDistribution(s) {
	case "PreferClose", "PreferSameZone":
		lb.Mode, lb.RoutingPreference = workloadapi.LoadBalancing_FAILOVER, zone
	case "PreferSameNode":
		lb.Mode = workloadapi.LoadBalancing_FAILOVER
		lb.RoutingPreference = append(zone, workloadapi.LoadBalancing_SUBZONE, workloadapi.LoadBalancing_NODE)
	default:
		if !s.Spec.PublishNotReadyAddresses {
			return nil
		}
	}
	return lb
}

func trafficDistribution(s *corev1.Service) string {
	if s.Spec.TrafficDistribution != nil {
		return *s.Spec.TrafficDistribution
	}
	return s.Annotations[annotationTrafficDst]
}

// ipFamilies is what the service says, else what its addresses show, since no API server fills the field in.
func ipFamilies(s *corev1.Service) workloadapi.IPFamilies {
	var v4, v6 bool
	for _, f := range s.Spec.IPFamilies {
		v4, v6 = v4 || f == corev1.IPv4Protocol, v6 || f == corev1.IPv6Protocol
	}
	if len(s.Spec.IPFamilies) == 0 {
		for _, ip := range clusterIPs(s) {
			is4 := netip.MustParseAddr(ip).Unmap().Is4()
			v4, v6 = v4 || is4, v6 || !is4
		}
	}
	switch {
	case v4 && v6:
		return workloadapi.IPFamilies_DUAL
	case v4:
		return workloadapi.IPFamilies_IPV4_ONLY
	case v6:
		return workloadapi.IPFamilies_IPV6_ONLY
	}
	return workloadapi.IPFamilies_AUTOMATIC
}

// appProtocol follows spec.ports[].appProtocol, else the prefix of the port's name, as istiod does.
func appProtocol(p corev1.ServicePort) workloadapi.AppProtocol {
	name, _, _ := strings.Cut(p.Name, "-")
	if p.AppProtocol != nil {
		name = strings.TrimPrefix(*p.AppProtocol, "kubernetes.io/")
	}
	switch strings.ToLower(name) {
	case "http", "ws":
		return workloadapi.AppProtocol_HTTP11
	case "http2", "h2c":
		return workloadapi.AppProtocol_HTTP2
	case "grpc":
		return workloadapi.AppProtocol_GRPC
	case "tls", "https", "wss":
		return workloadapi.AppProtocol_TLS
	case "tcp", "mongo", "mysql", "redis":
		return workloadapi.AppProtocol_TCP
	}
	return workloadapi.AppProtocol_UNKNOWN
}
