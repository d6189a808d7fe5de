// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/internal/lab"
)

// proveReach requests the server by pod address and by service address, over both families, and looks at whom nginx
// says it served.
func proveReach(s *scene, r *report) error {
	for _, t := range []struct {
		name string
		addr netip.Addr
		port int
		want netip.Addr
	}{
		{"pod address, IPv4", s.server.Addr4, httpPort, s.client.Addr4},
		{"pod address, IPv6", s.server.Addr6, httpPort, s.client.Addr6},
		{"service address, IPv4", vip4, servicePort, s.client.Addr4},
		{"service address, IPv6", vip6, servicePort, s.client.Addr6},
	} {
		id := tag()
		a := s.curl(s.client, url(t.addr, t.port, id), requestMarker)
		logged, err := s.loggedClient(s.server.NS, id)
		if err != nil {
			logged = err.Error()
		}
		r.check(a.ok() && logged == t.want.String(), "client -> server by "+t.name, "%v; nginx served %s (the client is %s)", a, logged, t.want)
	}
	return nil
}

// provePassthrough requests a host that is in no mesh: the kernel alone carries it.
func provePassthrough(s *scene, r *report) error {
	node := s.Nodes[0]
	for _, t := range []struct {
		family string
		addr   netip.Addr
		want   netip.Addr
	}{
		{"IPv4", lab.OutsideAddr4, s.client.Addr4},
		{"IPv6", lab.OutsideAddr6, s.client.Addr6},
	} {
		before, err := s.passthroughCounts(node)
		if err != nil {
			return err
		}
		id := tag()
		a := s.curl(s.client, url(t.addr, httpPort, id), requestMarker)
		logged, err := s.loggedClient(s.NS("outside"), id)
		if err != nil {
			logged = err.Error()
		}
		after, err := s.passthroughCounts(node)
		if err != nil {
			return err
		}
		passed, opened := after.passed-before.passed, after.opened-before.opened
		r.check(a.ok() && passed == 1 && opened == 0 && logged == t.want.String(), "client -> outside, "+t.family,
			"%v; verdict %v +%d, ztunnel connections +%.0f, source seen %s", a, bpf.VerdictPassthrough, passed, opened, logged)
	}
	return nil
}

// passthroughCounts is what tells a flow that stayed in the kernel from one that ztunnel carried.
type passthroughCounts struct {
	passed uint64
	opened float64
}

func (s *scene) passthroughCounts(n *lab.Node) (c passthroughCounts, err error) {
	verdicts, err := s.podVerdicts(n, s.client)
	if err != nil {
		return c, err
	}
	c.passed = verdicts[bpf.VerdictPassthrough]
	if c.opened, err = metric(n, "istio_tcp_connections_opened_total"); err != nil {
		return c, fmt.Errorf("metrics of %s: %w", n.Name, err)
	}
	return c, nil
}
