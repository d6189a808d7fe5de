// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

type localService struct {
	Name            string            `json:"name"`
	Namespace       string            `json:"namespace"`
	Hostname        string            `json:"hostname"`
	VIPs            []string          `json:"vips"`
	CIDRVIPs        []string          `json:"cidrVips"`
	Ports           map[uint16]uint16 `json:"ports"`
	SubjectAltNames []string          `json:"subjectAltNames"`
	Waypoint        *GatewayDump      `json:"waypoint"`
	LoadBalancer    *LoadBalancerDump `json:"loadBalancer"`
	IPFamilies      string            `json:"ipFamilies"`
	Canonical       bool              `json:"canonical"`
	Visibility      string            `json:"visibility"`
}

func (l localService) parse() (*Service, error) {
	if _, err := parseServiceKey(l.Namespace + "/" + l.Hostname); err != nil {
		return nil, fmt.Errorf("namespace or hostname: %w", err)
	}
	var errs []error
	s := &Service{
		Name: l.Name, Namespace: l.Namespace, Hostname: l.Hostname, Ports: l.Ports, SubjectAltNames: l.SubjectAltNames,
		Canonical:  l.Canonical,
		Waypoint:   localGateway(&errs, "waypoint", l.Waypoint),
		IPFamilies: IPFamilies(choice(&errs, "ipFamilies", l.IPFamilies, 0, familyNames...)),
		Private:    choice(&errs, "visibility", l.Visibility, 0, "Public", "Namespace") == 1,
	}
	if s.Ports == nil {
		s.Ports = map[uint16]uint16{}
	}
	if b := l.LoadBalancer; b != nil {
		s.LoadBalancing.Mode = Mode(choice(&errs, "loadBalancer.mode", b.Mode, 0, modeNames...))
		s.LoadBalancing.AllowUnhealthy = choice(&errs, "loadBalancer.healthPolicy", b.HealthPolicy, 0, "OnlyHealthy", "AllowAll") == 1
		for _, scope := range b.RoutingPreferences {
			s.LoadBalancing.RoutingPreference = append(s.LoadBalancing.RoutingPreference, Scope(choice(&errs, "loadBalancer.routingPreferences", scope, 0, scopeNames...)))
		}
	}
	errs = append(errs, l.parseVIPs(s))
	return s, errors.Join(errs...)
}

// parseVIPs reads "network/address" and "network/address/length"; the network may be empty, the slash not.
func (l localService) parseVIPs(s *Service) error {
	for _, vip := range l.VIPs {
		network, text, ok := strings.Cut(vip, "/")
		a, err := netip.ParseAddr(text)
		if !ok || err != nil {
			return fmt.Errorf("vips: %q is not network/address", vip)
		}
		s.VIPs = append(s.VIPs, NetworkAddr{network, a.Unmap()})
	}
	for _, vip := range l.CIDRVIPs {
		network, text, ok := strings.Cut(vip, "/")
		p, err := netip.ParsePrefix(text)
		if !ok || err != nil {
			return fmt.Errorf("cidrVips: %q is not network/address/length", vip)
		}
		s.CIDRVIPs = append(s.CIDRVIPs, NetworkPrefix{network, p.Masked()})
	}
	return nil
}

func parseServiceKey(name string) (ServiceKey, error) {
	namespace, hostname, ok := strings.Cut(name, "/")
	if !ok || namespace == "" || hostname == "" || strings.Contains(hostname, "/") {
		return ServiceKey{}, fmt.Errorf("key %q: want namespace/hostname", name)
	}
	return ServiceKey{namespace, hostname}, nil
}
