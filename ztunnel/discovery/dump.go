// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"maps"
	"net/netip"
)

// Dump is the store as the config dump shows it; the keys are the reference proxy's. Ambient section 9.4.
type Dump struct {
	Workloads []WorkloadDump `json:"workloads"`
	Services  []ServiceDump  `json:"services"`
	Policies  []PolicyDump   `json:"policies"`
	// StagedServices are endpoints of services that are not known: service to uid.
	StagedServices map[string]map[string]EndpointDump `json:"stagedServices"`
}

// WorkloadDump is one workload of a Dump.
type WorkloadDump struct {
	UID                   string                       `json:"uid"`
	Name                  string                       `json:"name"`
	Namespace             string                       `json:"namespace"`
	ServiceAccount        string                       `json:"serviceAccount"`
	TrustDomain           string                       `json:"trustDomain"`
	WorkloadIPs           []netip.Addr                 `json:"workloadIps"`
	Protocol              string                       `json:"protocol"`
	Network               string                       `json:"network"`
	NetworkMode           string                       `json:"networkMode"`
	NetworkGateway        *GatewayDump                 `json:"networkGateway,omitempty"`
	Waypoint              *GatewayDump                 `json:"waypoint,omitempty"`
	Node                  string                       `json:"node"`
	WorkloadName          string                       `json:"workloadName"`
	WorkloadType          string                       `json:"workloadType"`
	CanonicalName         string                       `json:"canonicalName"`
	CanonicalRevision     string                       `json:"canonicalRevision"`
	ClusterID             string                       `json:"clusterId"`
	Locality              Locality                     `json:"locality"`
	Status                string                       `json:"status"`
	Hostname              string                       `json:"hostname"`
	Capacity              uint32                       `json:"capacity"`
	NativeTunnel          bool                         `json:"nativeTunnel"`
	ApplicationTunnel     *TunnelDump                  `json:"applicationTunnel,omitempty"`
	AuthorizationPolicies []string                     `json:"authorizationPolicies"`
	Services              map[string]map[uint16]uint16 `json:"services"`
}

// GatewayDump is a reference to a gateway.
type GatewayDump struct {
	Destination   string `json:"destination"`
	HBONEMTLSPort uint16 `json:"hboneMtlsPort"`
}

// TunnelDump is how an application wants its connections.
type TunnelDump struct {
	Protocol string `json:"protocol"`
	Port     uint16 `json:"port"`
}

// ServiceDump is one service of a Dump.
type ServiceDump struct {
	Name              string                  `json:"name"`
	Namespace         string                  `json:"namespace"`
	Hostname          string                  `json:"hostname"`
	VIPs              []string                `json:"vips"`
	CIDRVIPs          []string                `json:"cidrVips"`
	Ports             map[uint16]uint16       `json:"ports"`
	Endpoints         map[string]EndpointDump `json:"endpoints"`
	SubjectAltNames   []string                `json:"subjectAltNames"`
	Waypoint          *GatewayDump            `json:"waypoint,omitempty"`
	WeightedWaypoints []WeightedGatewayDump   `json:"weightedWaypoints,omitempty"`
	LoadBalancer      *LoadBalancerDump       `json:"loadBalancer,omitempty"`
	IPFamilies        string                  `json:"ipFamilies"`
	Canonical         bool                    `json:"canonical"`
	Visibility        string                  `json:"visibility"`
}

// EndpointDump is one endpoint of a service.
type EndpointDump struct {
	WorkloadUID string            `json:"workloadUid"`
	Port        map[uint16]uint16 `json:"port"`
	Status      string            `json:"status"`
}

// WeightedGatewayDump is one of several waypoints of a service.
type WeightedGatewayDump struct {
	GatewayDump
	Weight uint32 `json:"weight"`
}

// LoadBalancerDump is how a service wants its endpoints chosen.
type LoadBalancerDump struct {
	Mode               string   `json:"mode"`
	RoutingPreferences []string `json:"routingPreferences"`
	HealthPolicy       string   `json:"healthPolicy"`
}

// Dump returns everything in the store, by name.
func (s *Store) Dump() Dump {
	d := Dump{
		Workloads: []WorkloadDump{}, Services: []ServiceDump{}, Policies: []PolicyDump{},
		StagedServices: map[string]map[string]EndpointDump{},
	}
	for _, w := range s.Workloads() {
		d.Workloads = append(d.Workloads, w.dump())
	}
	for _, svc := range s.Services() {
		d.Services = append(d.Services, svc.dump(s.Endpoints(svc.Key())))
	}
	for _, p := range s.Policies() {
		d.Policies = append(d.Policies, p.dump())
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for key, members := range s.members {
		if s.services[key] != nil {
			continue
		}
		staged := map[string]EndpointDump{}
		for uid, w := range members {
			staged[uid] = Endpoint{w, w.Services[key]}.dump()
		}
		d.StagedServices[key.String()] = staged
	}
	return d
}

func (w *Workload) dump() WorkloadDump {
	d := WorkloadDump{
		UID: w.UID, Name: w.Name, Namespace: w.Namespace, ServiceAccount: w.ServiceAccount, TrustDomain: w.TrustDomain,
		WorkloadIPs: append([]netip.Addr{}, w.Addresses...), Protocol: w.Protocol.String(), Network: w.Network,
		NetworkMode: "Standard", NetworkGateway: w.NetworkGateway.dump(), Waypoint: w.Waypoint.dump(), Node: w.Node,
		WorkloadName: w.WorkloadName, WorkloadType: w.WorkloadType.String(), CanonicalName: w.CanonicalName,
		CanonicalRevision: w.CanonicalRevision, ClusterID: w.ClusterID, Locality: w.Locality, Status: w.status(),
		Hostname: w.Hostname, Capacity: w.Capacity, NativeTunnel: w.NativeTunnel,
		AuthorizationPolicies: append([]string{}, w.Policies...), Services: map[string]map[uint16]uint16{},
	}
	if w.HostNetwork {
		d.NetworkMode = "HostNetwork"
	}
	if t := w.AppTunnel; t != nil {
		d.ApplicationTunnel = &TunnelDump{Protocol: "NONE", Port: t.Port}
		if t.Proxy {
			d.ApplicationTunnel.Protocol = "PROXY"
		}
	}
	for key, ports := range w.Services {
		d.Services[key.String()] = ports
	}
	return d
}

func (w *Workload) status() string {
	if w.Healthy {
		return "Healthy"
	}
	return "Unhealthy"
}

func (g *Gateway) dump() *GatewayDump {
	if g == nil {
		return nil
	}
	return &GatewayDump{Destination: g.String(), HBONEMTLSPort: g.Port}
}

func (s *Service) dump(endpoints []Endpoint) ServiceDump {
	d := ServiceDump{
		Name: s.Name, Namespace: s.Namespace, Hostname: s.Hostname,
		VIPs: texts(s.VIPs), CIDRVIPs: texts(s.CIDRVIPs), Ports: maps.Clone(s.Ports),
		Endpoints: map[string]EndpointDump{}, SubjectAltNames: append([]string{}, s.SubjectAltNames...),
		Waypoint: s.Waypoint.dump(), LoadBalancer: s.LoadBalancing.dump(),
		IPFamilies: name(familyNames, int(s.IPFamilies)), Canonical: s.Canonical, Visibility: "Public",
	}
	if s.Private {
		d.Visibility = "Namespace"
	}
	for _, e := range endpoints {
		d.Endpoints[e.Workload.UID] = e.dump()
	}
	for _, g := range s.WeightedWaypoints {
		d.WeightedWaypoints = append(d.WeightedWaypoints, WeightedGatewayDump{*g.dump(), g.Weight})
	}
	return d
}

func (e Endpoint) dump() EndpointDump {
	return EndpointDump{WorkloadUID: e.Workload.UID, Port: e.Ports, Status: e.Workload.status()}
}

var (
	familyNames = []string{"Automatic", "IPv4", "IPv6", "Dual"}
	modeNames   = []string{"Standard", "Strict", "Failover", "Passthrough"}
	scopeNames  = []string{"Unspecified", "Region", "Zone", "Subzone", "Node", "Cluster", "Network"}
)

func (l LoadBalancing) dump() *LoadBalancerDump {
	if l.Mode == ModeUnspecified && len(l.RoutingPreference) == 0 && !l.AllowUnhealthy {
		return nil
	}
	d := &LoadBalancerDump{Mode: name(modeNames, int(l.Mode)), RoutingPreferences: []string{}, HealthPolicy: "OnlyHealthy"}
	if l.AllowUnhealthy {
		d.HealthPolicy = "AllowAll"
	}
	for _, scope := range l.RoutingPreference {
		d.RoutingPreferences = append(d.RoutingPreferences, name(scopeNames, int(scope)))
	}
	return d
}

func name(names []string, n int) string {
	if n < 0 || n >= len(names) {
		return "Unknown"
	}
	return names[n]
}

func texts[T interface{ String() string }](list []T) []string {
	out := []string{}
	for _, v := range list {
		out = append(out, v.String())
	}
	return out
}
