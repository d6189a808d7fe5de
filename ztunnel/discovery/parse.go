// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"

	"github.com/sluice-mesh/sluice/internal/workloadapi"
)

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
