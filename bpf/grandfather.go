// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
)

// maxDumps bounds how often a listing is begun again because sockets changed under it.
const maxDumps = 5

// openConnections lists the connections of the calling thread's network namespace, as their peers send: TCP sockets in
// any state but LISTEN, except those whose other end is here, too.
func openConnections() ([]captureFlow, error) {
	sent := map[captureFlow]bool{}
	for _, family := range families() {
		sockets, err := dumpTCP(uint8(family))
		if err != nil {
			return nil, fmt.Errorf("list %s connections: %w", familyName(family), err)
		}
		for _, s := range sockets {
			if s.State != netlink.TCP_LISTEN && s.State != netlink.TCP_CLOSE {
				sent[flowOf(&s.ID)] = true
			}
		}
	}
	var received []captureFlow
	for flow := range sent {
		back := captureFlow{Src: flow.Dst, Dst: flow.Src, Sport: flow.Dport, Dport: flow.Sport}
		if !sent[back] {
			received = append(received, back)
		}
	}
	return received, nil
}

func dumpTCP(family uint8) (sockets []*netlink.Socket, err error) {
	for range maxDumps {
		sockets, err = netlink.SocketDiagTCP(family)
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return sockets, err
		}
	}
	return nil, err
}

// flowOf is the connection as the socket sends.
func flowOf(id *netlink.SocketID) captureFlow {
	src, _ := netip.AddrFromSlice(id.Source)
	dst, _ := netip.AddrFromSlice(id.Destination)
	return newFlow(netip.AddrPortFrom(src, id.SourcePort), netip.AddrPortFrom(dst, id.DestinationPort))
}

func newFlow(src, dst netip.AddrPort) captureFlow {
	return captureFlow{
		Src: newAddress(src.Addr()), Dst: newAddress(dst.Addr()),
		Sport: portBE(src.Port()), Dport: portBE(dst.Port()),
	}
}

func newAddress(addr netip.Addr) (a captureAddress) {
	bytes := addr.As16() // IPv4 becomes ::ffff:a.b.c.d, as in flow.bpf.h
	for i := range a.Word {
		a.Word[i] = binary.NativeEndian.Uint32(bytes[4*i:])
	}
	return a
}

func portBE(port uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, port))
}

// grandfather exempts connections from capture for as long as they live.
func grandfather(m *ebpf.Map, flows []captureFlow) error {
	for i := range flows {
		if err := m.Put(&flows[i], uint8(1)); err != nil {
			return fmt.Errorf("exempt open connection %d of %d: %w", i+1, len(flows), err)
		}
	}
	return nil
}
