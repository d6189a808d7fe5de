// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"net/netip"
	"strings"
)

// DefaultHBONEPort is a gateway's port when its reference names none.
const DefaultHBONEPort = 15008

// ServiceKey names a service. Comparable.
type ServiceKey struct {
	Namespace string
	Hostname  string
}

// String returns "namespace/hostname", the service's name on the wire.
func (k ServiceKey) String() string { return k.Namespace + "/" + k.Hostname }

// NetworkAddr is an address on one of the mesh's networks. Comparable.
type NetworkAddr struct {
	Network string // empty is the default network
	Addr    netip.Addr
}

// String returns "network/address".
func (a NetworkAddr) String() string { return a.Network + "/" + a.Addr.String() }

// NetworkPrefix is a range of addresses on one of the mesh's networks. Comparable.
type NetworkPrefix struct {
	Network string
	Prefix  netip.Prefix
}

// String returns "network/address/length".
func (p NetworkPrefix) String() string { return p.Network + "/" + p.Prefix.String() }

// Gateway refers to a waypoint or a network gateway, by address if Address.Addr is valid and by host name otherwise.
type Gateway struct {
	Address  NetworkAddr
	Hostname ServiceKey
	Port     uint16 // of HBONE, never 0
}

// String returns "network/address" or "namespace/hostname".
func (g *Gateway) String() string {
	if g.Address.Addr.IsValid() {
		return g.Address.String()
	}
	return g.Hostname.String()
}

// WeightedGateway is one of several waypoints that share a service's connections.
type WeightedGateway struct {
	Gateway
	Weight uint32
}

// Scope is what two workloads may have in common; its numbers are the API's. One we do not know matches nothing.
type Scope int32

// The scopes of a routing preference.
const (
	ScopeRegion  Scope = 1
	ScopeZone    Scope = 2
	ScopeSubzone Scope = 3
	ScopeNode    Scope = 4
	ScopeCluster Scope = 5
	ScopeNetwork Scope = 6
)

// Mode is how a routing preference binds; its numbers are the API's.
type Mode int32

// The modes of load balancing.
const (
	ModeUnspecified Mode = 0 // all endpoints alike
	ModeStrict      Mode = 1 // only endpoints that match every preference
	ModeFailover    Mode = 2 // the endpoints that match most
	ModePassthrough Mode = 3 // the original destination, whatever is there
)

// LoadBalancing is how a service wants its endpoints chosen.
type LoadBalancing struct {
	RoutingPreference []Scope
	Mode              Mode
	// AllowUnhealthy makes unhealthy workloads endpoints too.
	AllowUnhealthy bool
}

// IPFamilies are the families a service serves; its numbers are the API's.
type IPFamilies int32

// The families of a service.
const (
	FamiliesAutomatic IPFamilies = 0
	FamiliesIPv4      IPFamilies = 1
	FamiliesIPv6      IPFamilies = 2
	FamiliesDual      IPFamilies = 3
)

// Service is a name, and mostly addresses, for a set of workloads.
type Service struct {
	Name      string
	Namespace string
	Hostname  string
	VIPs      []NetworkAddr
	CIDRVIPs  []NetworkPrefix
	// Ports maps service ports to target ports. 0 stands for a named port: the endpoint's own mapping decides.
	Ports map[uint16]uint16
	// SubjectAltNames are SPIFFE URIs that endpoints may present besides their own.
	SubjectAltNames   []string
	Waypoint          *Gateway
	WeightedWaypoints []WeightedGateway
	LoadBalancing     LoadBalancing
	IPFamilies        IPFamilies
	// Canonical services win over others with the same name or address.
	Canonical bool
	// Private services exist for clients of their own namespace only.
	Private bool
}

// Key names the service.
func (s *Service) Key() ServiceKey { return ServiceKey{s.Namespace, s.Hostname} }

func (s *Service) visibleTo(namespace string) bool { return !s.Private || s.Namespace == namespace }

// Endpoint is a workload in its role for one service.
type Endpoint struct {
	Workload *Workload
	// Ports is the workload's own mapping of service ports to target ports.
	Ports map[uint16]uint16
}

// TargetPort maps a port of svc: by the endpoint's own mapping, else by the service's. It is false if the service does
// not have the port, or has it by a name that this endpoint does not know.
func (e Endpoint) TargetPort(svc *Service, port uint16) (uint16, bool) {
	target, ok := svc.Ports[port]
	if !ok {
		return 0, false
	}
	if own := e.Ports[port]; own != 0 {
		return own, true
	}
	return target, target != 0
}

// preferred orders services that share a host name or an address. Canonical ones first, then by name so that all nodes
// agree.
func preferred(a, b *Service) int {
	if a.Canonical != b.Canonical {
		return trueFirst(a.Canonical)
	}
	if a.Namespace != b.Namespace {
		return strings.Compare(a.Namespace, b.Namespace)
	}
	return strings.Compare(a.Hostname, b.Hostname)
}

// choose picks from services in the order of preferred: one in the client's namespace, else the first it may see.
func choose(services []*Service, clientNamespace string) *Service {
	var first *Service
	for _, s := range services {
		if s.Namespace == clientNamespace {
			return s
		}
		if first == nil && s.visibleTo(clientNamespace) {
			first = s
		}
	}
	return first
}
