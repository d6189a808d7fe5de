// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"errors"
	"fmt"
	"strings"

	"github.com/sluice-mesh/sluice/internal/workloadapi"
)

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
