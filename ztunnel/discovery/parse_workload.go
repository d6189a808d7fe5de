// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"cmp"
	"errors"
	"fmt"
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
