// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/sluice-mesh/sluice/internal/workloadapi"
)

// parseWorkload checks and converts a workload. Enums we do not know are errors only where guessing could send a
// connection the wrong way; ambient section 5.4.
func parseWorkload(m *workloadapi.Workload) (*Workload, error) {
	w := &Workload{
		UID: m.GetUid(), Name: m.GetName(), Namespace: m.GetNamespace(),
		Hostname: m.GetHostname(), Network: m.GetNetwork(),
		TrustDomain:    cmp.Or(m.GetTrustDomain(), "cluster.local"),
		ServiceAccount: cmp.Or(m.GetServiceAccount(), "default"),
		Node:           m.GetNode(),
		CanonicalName:  m.GetCanonicalName(), CanonicalRevision: m.GetCanonicalRevision(),
		WorkloadType: WorkloadType(m.GetWorkloadType()), WorkloadName: m.GetWorkloadName(),
		NativeTunnel: m.GetNativeTunnel(),
		// A status we do not know is hardly good news.
		Healthy:   m.GetStatus() == workloadapi.WorkloadStatus_HEALTHY,
		ClusterID: cmp.Or(m.GetClusterId(), "Kubernetes"),
		Locality: Locality{
			Region: m.GetLocality().GetRegion(), Zone: m.GetLocality().GetZone(), Subzone: m.GetLocality().GetSubzone(),
		},
		HostNetwork: m.GetNetworkMode() == workloadapi.NetworkMode_HOST_NETWORK,
		Capacity:    1,
	}
	if w.UID == "" {
		return nil, errors.New("uid is empty")
	}
	if m.GetCapacity() != nil {
		w.Capacity = m.GetCapacity().GetValue()
	}
	w.Policies = slices.Compact(slices.Sorted(slices.Values(m.GetAuthorizationPolicies())))
	return w, errors.Join(
		w.parseProtocol(m), w.parseAddresses(m), w.parseServices(m), w.parseTunnel(m),
		parseGatewayInto(&w.Waypoint, "waypoint", m.GetWaypoint()),
		parseGatewayInto(&w.NetworkGateway, "network_gateway", m.GetNetworkGateway()),
	)
}

func (w *Workload) parseProtocol(m *workloadapi.Workload) error {
	switch p := m.GetTunnelProtocol(); p {
	case workloadapi.TunnelProtocol_NONE:
		w.Protocol = ProtocolTCP
	case workloadapi.TunnelProtocol_HBONE:
		w.Protocol = ProtocolHBONE
	default:
		return fmt.Errorf("tunnel_protocol: %s is not supported", p)
	}
	return nil
}

func (w *Workload) parseAddresses(m *workloadapi.Workload) error {
	for i, raw := range m.GetAddresses() {
		a, err := parseAddr(raw)
		if err != nil {
			return fmt.Errorf("addresses[%d]: %w", i, err)
		}
		w.Addresses = append(w.Addresses, a)
	}
	return nil
}

func (w *Workload) parseServices(m *workloadapi.Workload) error {
	for name, ports := range m.GetServices() {
		namespace, hostname, ok := strings.Cut(name, "/")
		if !ok || namespace == "" || hostname == "" || strings.Contains(hostname, "/") {
			return fmt.Errorf("services: key %q: want namespace/hostname", name)
		}
		mapping, err := parsePorts(ports.GetPorts())
		if err != nil {
			return fmt.Errorf("services[%q]: %w", name, err)
		}
		if w.Services == nil {
			w.Services = map[ServiceKey]map[uint16]uint16{}
		}
		w.Services[ServiceKey{namespace, hostname}] = mapping
	}
	return nil
}

func (w *Workload) parseTunnel(m *workloadapi.Workload) error {
	t := m.GetApplicationTunnel()
	if t == nil {
		return nil
	}
	port, err := parsePort(t.GetPort())
	if err != nil {
		return fmt.Errorf("application_tunnel: %w", err)
	}
	switch p := t.GetProtocol(); p {
	case workloadapi.ApplicationTunnel_NONE, workloadapi.ApplicationTunnel_PROXY:
		w.AppTunnel = &Tunnel{Proxy: p == workloadapi.ApplicationTunnel_PROXY, Port: port}
	default:
		return fmt.Errorf("application_tunnel: protocol %s is not supported", p)
	}
	return nil
}

// parseService checks and converts a service.
func parseService(m *workloadapi.Service) (*Service, error) {
	s := &Service{
		Name: m.GetName(), Namespace: m.GetNamespace(), Hostname: m.GetHostname(),
		SubjectAltNames: m.GetSubjectAltNames(),
		LoadBalancing: LoadBalancing{
			Mode:           Mode(m.GetLoadBalancing().GetMode()),
			AllowUnhealthy: m.GetLoadBalancing().GetHealthPolicy() == workloadapi.LoadBalancing_ALLOW_ALL,
		},
		IPFamilies: IPFamilies(m.GetIpFamilies()),
		Canonical:  m.GetCanonical(),
		Private:    m.GetVisibility() == workloadapi.Visibility_NAMESPACE,
	}
	if s.Namespace == "" || s.Hostname == "" {
		return nil, errors.New("namespace or hostname is empty")
	}
	// Removal is by name, which must say where the one ends and the other begins.
	if strings.Contains(s.Namespace, "/") || strings.Contains(s.Hostname, "/") {
		return nil, fmt.Errorf("slash in namespace %q or hostname %q", s.Namespace, s.Hostname)
	}
	for _, scope := range m.GetLoadBalancing().GetRoutingPreference() {
		s.LoadBalancing.RoutingPreference = append(s.LoadBalancing.RoutingPreference, Scope(scope))
	}
	var err error
	if s.Ports, err = parsePorts(m.GetPorts()); err != nil {
		return nil, err
	}
	return s, errors.Join(s.parseVIPs(m), s.parseWaypoints(m))
}

func (s *Service) parseVIPs(m *workloadapi.Service) error {
	for i, raw := range m.GetAddresses() {
		a, err := parseAddr(raw.GetAddress())
		if err != nil {
			return fmt.Errorf("addresses[%d]: %w", i, err)
		}
		if raw.Length == nil {
			s.VIPs = append(s.VIPs, NetworkAddr{raw.GetNetwork(), a})
			continue
		}
		prefix, err := parsePrefix(raw.GetAddress(), raw.GetLength())
		if err != nil {
			return fmt.Errorf("addresses[%d]: %w", i, err)
		}
		if prefix.IsSingleIP() {
			s.VIPs = append(s.VIPs, NetworkAddr{raw.GetNetwork(), a})
		} else {
			s.CIDRVIPs = append(s.CIDRVIPs, NetworkPrefix{raw.GetNetwork(), prefix})
		}
	}
	return nil
}

func (s *Service) parseWaypoints(m *workloadapi.Service) error {
	if err := parseGatewayInto(&s.Waypoint, "waypoint", m.GetWaypoint()); err != nil {
		return err
	}
	for i, raw := range m.GetWeightedWaypoints() {
		g, err := parseGateway(raw.GetDestination())
		if err != nil {
			return fmt.Errorf("weighted_waypoints[%d]: %w", i, err)
		}
		s.WeightedWaypoints = append(s.WeightedWaypoints, WeightedGateway{Gateway: *g, Weight: raw.GetWeight()})
	}
	return nil
}

func parseGatewayInto(into **Gateway, field string, m *workloadapi.GatewayAddress) error {
	if m == nil {
		return nil
	}
	g, err := parseGateway(m)
	if err != nil {
		return fmt.Errorf("%s: %w", field, err)
	}
	*into = g
	return nil
}

func parseGateway(m *workloadapi.GatewayAddress) (*Gateway, error) {
	port, err := parsePort(m.GetHboneMtlsPort())
	if err != nil {
		return nil, err
	}
	g := &Gateway{Port: cmp.Or(port, DefaultHBONEPort)}
	switch d := m.GetDestination().(type) {
	case *workloadapi.GatewayAddress_Hostname:
		g.Hostname = ServiceKey{d.Hostname.GetNamespace(), d.Hostname.GetHostname()}
		if g.Hostname.Hostname == "" {
			return nil, errors.New("hostname is empty")
		}
	case *workloadapi.GatewayAddress_Address:
		a, err := parseAddr(d.Address.GetAddress())
		if err != nil {
			return nil, err
		}
		g.Address = NetworkAddr{d.Address.GetNetwork(), a}
	default:
		return nil, errors.New("neither hostname nor address")
	}
	return g, nil
}

func parsePorts(list []*workloadapi.Port) (map[uint16]uint16, error) {
	ports := make(map[uint16]uint16, len(list))
	for i, m := range list {
		service, err := parsePort(m.GetServicePort())
		if err != nil {
			return nil, fmt.Errorf("ports[%d]: service_port: %w", i, err)
		}
		target, err := parsePort(m.GetTargetPort())
		if err != nil {
			return nil, fmt.Errorf("ports[%d]: target_port: %w", i, err)
		}
		ports[service] = target
	}
	return ports, nil
}

func parsePort(n uint32) (uint16, error) {
	if n > 65535 {
		return 0, fmt.Errorf("port %d is above 65535", n)
	}
	return uint16(n), nil
}

// parseAddr reads 4 or 16 bytes. An IPv4 address in IPv6 form is the IPv4 address.
func parseAddr(raw []byte) (netip.Addr, error) {
	a, ok := netip.AddrFromSlice(raw)
	if !ok {
		return netip.Addr{}, fmt.Errorf("address of %d bytes, want 4 or 16", len(raw))
	}
	return a.Unmap(), nil
}

// parsePrefix reads an address and how many of its bits count.
func parsePrefix(raw []byte, length uint32) (netip.Prefix, error) {
	a, ok := netip.AddrFromSlice(raw)
	if !ok {
		return netip.Prefix{}, fmt.Errorf("address of %d bytes, want 4 or 16", len(raw))
	}
	if int64(length) > int64(a.BitLen()) {
		return netip.Prefix{}, fmt.Errorf("prefix %s/%d is longer than %d bits", a, length, a.BitLen())
	}
	bits := int(length)
	if a.Is4In6() {
		if bits < 96 {
			return netip.Prefix{}, fmt.Errorf("prefix %s/%d is neither IPv4 nor IPv6", a, length)
		}
		a, bits = a.Unmap(), bits-96
	}
	return a.Prefix(bits)
}
