// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"

	"github.com/sluice-mesh/sluice/ztunnel/discovery"
)

type workloadDump struct {
	UID                   string                       `json:"uid"`
	Name                  string                       `json:"name"`
	Namespace             string                       `json:"namespace"`
	ServiceAccount        string                       `json:"serviceAccount"`
	TrustDomain           string                       `json:"trustDomain"`
	WorkloadIPs           []netip.Addr                 `json:"workloadIps"`
	Protocol              string                       `json:"protocol"`
	Network               string                       `json:"network"`
	NetworkMode           string                       `json:"networkMode"`
	NetworkGateway        *gatewayDump                 `json:"networkGateway,omitempty"`
	Waypoint              *gatewayDump                 `json:"waypoint,omitempty"`
	Node                  string                       `json:"node"`
	WorkloadName          string                       `json:"workloadName"`
	WorkloadType          string                       `json:"workloadType"`
	CanonicalName         string                       `json:"canonicalName"`
	CanonicalRevision     string                       `json:"canonicalRevision"`
	ClusterID             string                       `json:"clusterId"`
	Locality              discovery.Locality           `json:"locality"`
	Status                string                       `json:"status"`
	Hostname              string                       `json:"hostname"`
	Capacity              uint32                       `json:"capacity"`
	NativeTunnel          bool                         `json:"nativeTunnel"`
	ApplicationTunnel     *tunnelDump                  `json:"applicationTunnel,omitempty"`
	AuthorizationPolicies []string                     `json:"authorizationPolicies"`
	Services              map[string]map[uint16]uint16 `json:"services"`
}

type gatewayDump struct {
	Destination   string `json:"destination"`
	HBONEMTLSPort uint16 `json:"hboneMtlsPort"`
}

type tunnelDump struct {
	Protocol string `json:"protocol"`
	Port     uint16 `json:"port,omitempty"`
}

func dumpWorkload(w *discovery.Workload) workloadDump {
	d := workloadDump{
		UID: w.UID, Name: w.Name, Namespace: w.Namespace, ServiceAccount: w.ServiceAccount, TrustDomain: w.TrustDomain,
		WorkloadIPs: w.Addresses, Protocol: w.Protocol.String(), Network: w.Network, NetworkMode: "Standard",
		NetworkGateway: dumpGateway(w.NetworkGateway), Waypoint: dumpGateway(w.Waypoint), Node: w.Node,
		WorkloadName: w.WorkloadName, WorkloadType: w.WorkloadType.String(),
		CanonicalName: w.CanonicalName, CanonicalRevision: w.CanonicalRevision, ClusterID: w.ClusterID, Locality: w.Locality,
		Status: dumpHealth(w), Hostname: w.Hostname, Capacity: w.Capacity, NativeTunnel: w.NativeTunnel,
		AuthorizationPolicies: w.Policies, Services: map[string]map[uint16]uint16{},
	}
	if w.HostNetwork {
		d.NetworkMode = "HostNetwork"
	}
	if t := w.AppTunnel; t != nil {
		d.ApplicationTunnel = &tunnelDump{Protocol: "NONE", Port: t.Port}
		if t.Proxy {
			d.ApplicationTunnel.Protocol = "PROXY"
		}
	}
	for key, ports := range w.Services {
		d.Services[key.String()] = ports
	}
	return d
}

func dumpGateway(g *discovery.Gateway) *gatewayDump {
	if g == nil {
		return nil
	}
	return &gatewayDump{g.String(), g.Port}
}

func dumpHealth(w *discovery.Workload) string {
	if w.Healthy {
		return "Healthy"
	}
	return "Unhealthy"
}

type serviceDump struct {
	Name            string                  `json:"name"`
	Namespace       string                  `json:"namespace"`
	Hostname        string                  `json:"hostname"`
	VIPs            []string                `json:"vips"`
	CIDRVIPs        []string                `json:"cidrVips,omitempty"`
	Ports           map[uint16]uint16       `json:"ports"`
	Endpoints       map[string]endpointDump `json:"endpoints"`
	SubjectAltNames []string                `json:"subjectAltNames"`
	Waypoint        *gatewayDump            `json:"waypoint,omitempty"`
	LoadBalancer    balancerDump            `json:"loadBalancer"`
	IPFamilies      string                  `json:"ipFamilies"`
	Canonical       bool                    `json:"canonical"`
	Visibility      string                  `json:"visibility"`
}

type endpointDump struct {
	WorkloadUID string            `json:"workloadUid"`
	Port        map[uint16]uint16 `json:"port"`
	Status      string            `json:"status"`
}

type balancerDump struct {
	Mode               string   `json:"mode"`
	RoutingPreferences []string `json:"routingPreferences"`
	HealthPolicy       string   `json:"healthPolicy"`
}

func dumpService(s *discovery.Service, endpoints []discovery.Endpoint) serviceDump {
	d := serviceDump{
		Name: s.Name, Namespace: s.Namespace, Hostname: s.Hostname, VIPs: texts(s.VIPs), CIDRVIPs: texts(s.CIDRVIPs),
		Ports: s.Ports, Endpoints: map[string]endpointDump{}, SubjectAltNames: s.SubjectAltNames,
		Waypoint: dumpGateway(s.Waypoint), Canonical: s.Canonical, Visibility: "Public",
		IPFamilies:   nameOf(int32(s.IPFamilies), "Automatic", "IPv4", "IPv6", "Dual"),
		LoadBalancer: balancerDump{Mode: nameOf(int32(s.LoadBalancing.Mode), "Standard", "Strict", "Failover", "Passthrough"), HealthPolicy: "OnlyHealthy"},
	}
	if s.Private {
		d.Visibility = "Namespace"
	}
	if s.LoadBalancing.AllowUnhealthy {
		d.LoadBalancer.HealthPolicy = "AllowAll"
	}
	for _, p := range s.LoadBalancing.RoutingPreference {
		d.LoadBalancer.RoutingPreferences = append(d.LoadBalancer.RoutingPreferences,
			nameOf(int32(p), "Unspecified", "Region", "Zone", "Subzone", "Node", "Cluster", "Network"))
	}
	for _, e := range endpoints {
		d.Endpoints[e.Workload.UID] = endpointDump{e.Workload.UID, e.Ports, dumpHealth(e.Workload)}
	}
	return d
}

func texts[T fmt.Stringer](list []T) []string {
	out := make([]string, 0, len(list))
	for _, v := range list {
		out = append(out, v.String())
	}
	return out
}

func nameOf(n int32, names ...string) string {
	if n >= 0 && int(n) < len(names) {
		return names[n]
	}
	return fmt.Sprint(n)
}
