// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/sluice-mesh/sluice/ztunnel/discovery"
	"github.com/sluice-mesh/sluice/ztunnel/identity"
	"github.com/sluice-mesh/sluice/ztunnel/inpod"
	"github.com/sluice-mesh/sluice/ztunnel/proxy"
)

// configDump is the admin page's /config_dump. The keys are the reference proxy's, whose command line reads them (ambient
// section 9.4).
type configDump struct {
	Workloads      []workloadDump       `json:"workloads"`
	Services       []serviceDump        `json:"services"`
	Policies       []policyDump         `json:"policies"`
	StagedServices struct{}             `json:"stagedServices"`
	StaticConfig   struct{}             `json:"staticConfig"`
	Version        string               `json:"version"`
	Config         *Config              `json:"config"`
	Certificates   []identity.CertState `json:"certificates"`
	WorkloadState  map[string]podDump   `json:"workloadState"`
}

type podDump struct {
	State       string                        `json:"state"`
	Connections map[string][]proxy.Connection `json:"connections"`
	Info        infoDump                      `json:"info"`
}

type infoDump struct {
	Name           string `json:"name"`
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
}

func (z *ztunnel) dump() any {
	d := configDump{Version: version(), Config: z.config, WorkloadState: z.dumpPods()}
	if z.certs != nil {
		d.Certificates = z.certs.Snapshot()
	}
	for _, w := range z.store.Workloads() {
		d.Workloads = append(d.Workloads, dumpWorkload(w))
	}
	for _, s := range z.store.Services() {
		d.Services = append(d.Services, dumpService(s, z.store.Endpoints(s.Key())))
	}
	for _, p := range z.store.Policies() {
		d.Policies = append(d.Policies, dumpPolicy(p))
	}
	return d
}

func (z *ztunnel) dumpPods() map[string]podDump {
	dump := map[string]podDump{}
	z.mu.Lock()
	pods, carrier := z.pods, z.proxy
	z.mu.Unlock()
	if pods == nil {
		return dump
	}
	for _, p := range pods.Pods() {
		dump[p.UID] = podDump{
			State:       p.State(),
			Connections: map[string][]proxy.Connection{"inbound": {}, "outbound": {}},
			Info:        infoOf(p.Info),
		}
	}
	for _, c := range carrier.Connections() {
		if p, ok := dump[c.UID]; ok {
			p.Connections[string(c.Direction)] = append(p.Connections[string(c.Direction)], c)
		}
	}
	return dump
}

func infoOf(i inpod.Info) infoDump { return infoDump{i.Name, i.Namespace, i.ServiceAccount} }

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

type policyDump struct {
	Name      string        `json:"name"`
	Namespace string        `json:"namespace"`
	Scope     string        `json:"scope"`
	Action    string        `json:"action"`
	Rules     [][][]matches `json:"rules"`
	DryRun    bool          `json:"dryRun"`
}

// matches is one match: the fields that are not empty.
type matches map[string]any

func dumpPolicy(p *discovery.Policy) policyDump {
	d := policyDump{
		Name: p.Name, Namespace: p.Namespace, DryRun: p.DryRun,
		Scope:  nameOf(int32(p.Scope), "Global", "Namespace", "WorkloadSelector"),
		Action: nameOf(int32(p.Action), "Allow", "Deny"),
	}
	for _, group := range p.Groups {
		rule := [][]matches{}
		for _, clause := range group.Clauses {
			list := []matches{}
			for _, m := range clause.Matches {
				list = append(list, dumpMatch(m))
			}
			rule = append(rule, list)
		}
		d.Rules = append(d.Rules, rule)
	}
	return d
}

func dumpMatch(m discovery.Match) matches {
	out := matches{}
	put := func(key string, n int, value any) {
		if n > 0 {
			out[key] = value
		}
	}
	put("namespaces", len(m.Namespaces), dumpStrings(m.Namespaces))
	put("notNamespaces", len(m.NotNamespaces), dumpStrings(m.NotNamespaces))
	put("principals", len(m.Principals), dumpStrings(m.Principals))
	put("notPrincipals", len(m.NotPrincipals), dumpStrings(m.NotPrincipals))
	put("sourceIps", len(m.SourceIPs), m.SourceIPs)
	put("notSourceIps", len(m.NotSourceIPs), m.NotSourceIPs)
	put("destinationIps", len(m.DestinationIPs), m.DestinationIPs)
	put("notDestinationIps", len(m.NotDestinationIPs), m.NotDestinationIPs)
	put("destinationPorts", len(m.DestinationPorts), m.DestinationPorts)
	put("notDestinationPorts", len(m.NotDestinationPorts), m.NotDestinationPorts)
	put("serviceAccounts", len(m.ServiceAccounts), dumpAccounts(m.ServiceAccounts))
	put("notServiceAccounts", len(m.NotServiceAccounts), dumpAccounts(m.NotServiceAccounts))
	return out
}

func dumpStrings(list []discovery.StringMatch) []map[string]any {
	var out []map[string]any
	for _, m := range list {
		if m.Kind == discovery.MatchPresence {
			out = append(out, map[string]any{"Presence": []string{}})
			continue
		}
		out = append(out, map[string]any{nameOf(int32(m.Kind), "Exact", "Prefix", "Suffix"): m.Value})
	}
	return out
}

func dumpAccounts(list []discovery.ServiceAccount) []string {
	var out []string
	for _, a := range list {
		out = append(out, strings.Join([]string{a.Namespace, a.Name}, "/"))
	}
	return out
}
