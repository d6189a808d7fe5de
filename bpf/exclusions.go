// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
)

// MaxExclusions bounds the networks and the ports of [Exclusions], each.
const MaxExclusions = 32

// Exclusions are destinations that are never captured: those in one of the networks, and those on one of the ports.
type Exclusions struct {
	CIDRs []netip.Prefix `json:"cidrs,omitempty"`
	Ports []uint16       `json:"ports,omitempty"`
}

// IsEmpty reports whether nothing is excluded.
func (e Exclusions) IsEmpty() bool { return len(e.CIDRs) == 0 && len(e.Ports) == 0 }

// Covers tells whether a connection to dst is excluded, as the programs would.
func (e Exclusions) Covers(dst netip.AddrPort) bool {
	addr := dst.Addr().Unmap()
	return slices.Contains(e.Ports, dst.Port()) ||
		slices.ContainsFunc(e.CIDRs, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// Validate returns all mistakes.
func (e Exclusions) Validate() error {
	var errs []error
	for _, p := range e.CIDRs {
		if !p.IsValid() || p.Addr().Is4In6() {
			errs = append(errs, fmt.Errorf("excluded network %v: is none", p))
		}
	}
	if slices.Contains(e.Ports, 0) {
		errs = append(errs, errors.New("excluded port 0: is none"))
	}
	for _, l := range []struct {
		what string
		n    int
	}{{"networks", len(e.CIDRs)}, {"ports", len(e.Ports)}} {
		if l.n > MaxExclusions {
			errs = append(errs, fmt.Errorf("%d excluded %s: at most %d", l.n, l.what, MaxExclusions))
		}
	}
	return errors.Join(errs...)
}

// exclusionMaps are the maps that one loading of the programs gets.
type exclusionMaps struct {
	Networks *ebpf.Map
	Ports    *ebpf.Map
}

func (m *exclusionMaps) byName() map[string]**ebpf.Map {
	return map[string]**ebpf.Map{captureMapExcludedNetworks: &m.Networks, captureMapExcludedPorts: &m.Ports}
}

// create makes the maps and fills them. The programs hold them: the caller closes the result once these are loaded.
func (e Exclusions) create() (_ *exclusionMaps, err error) {
	spec, err := captureSpec()
	if err != nil {
		return nil, err
	}
	var maps exclusionMaps
	for name, m := range maps.byName() {
		want := spec.Maps[name].Copy()
		want.MaxEntries = uint32(max(MaxExclusions, len(e.CIDRs), len(e.Ports)))
		if *m, err = ebpf.NewMap(want); err != nil {
			maps.Close()
			return nil, fmt.Errorf("create map %q: %w", name, err)
		}
	}
	if err := maps.fill(e); err != nil {
		maps.Close()
		return nil, err
	}
	return &maps, nil
}

// Close lets go of the maps.
func (m *exclusionMaps) Close() {
	for _, each := range m.byName() {
		if *each != nil {
			_ = (*each).Close()
		}
	}
}

func (m *exclusionMaps) fill(e Exclusions) error {
	for _, p := range e.CIDRs {
		if err := m.Networks.Put(networkKey(p), uint8(1)); err != nil {
			return fmt.Errorf("exclude network %v: %w", p, err)
		}
	}
	for _, port := range e.Ports {
		if err := m.Ports.Put([2]byte{byte(port >> 8), byte(port)}, uint8(1)); err != nil {
			return fmt.Errorf("exclude port %d: %w", port, err)
		}
	}
	return nil
}

// network is struct excluded_network.
type network struct {
	Prefix  uint32
	Family  uint32
	Address [16]byte
}

// networkKey is a network as the programs know it: IPv4 addresses are mapped to IPv6.
func networkKey(p netip.Prefix) network {
	key := network{Prefix: 32 + uint32(p.Bits()), Family: 6, Address: p.Masked().Addr().As16()}
	if p.Addr().Is4() {
		key.Prefix, key.Family = key.Prefix+96, 4
	}
	return key
}
