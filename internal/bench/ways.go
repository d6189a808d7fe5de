// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"slices"
)

// wayNames are the ways from a client to a server that are compared, in the order of the columns.
var wayNames = []string{"sluice", "haproxy", "nginx", "direct"}

// way is one of them.
type way struct {
	name string
	ns   string // where the client is
	http netip.AddrPort
	perf netip.AddrPort
	echo netip.AddrPort // who listens there, the part says

	serverNS string
	procs    []string // the proxies, by the names of their processes; nil: none
}

// ways are those that were asked for.
func (b *bench) ways() []way {
	local := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	to := func(name string, a netip.Addr, offset, perf int) way {
		at := func(port int) netip.AddrPort { return netip.AddrPortFrom(a, uint16(offset+port)) }
		return way{name: name, ns: b.pclient.NS, serverNS: b.pserver.NS, http: at(httpPort), perf: at(perf), echo: at(idlePort)}
	}
	sluice := to("sluice", b.server.Addr4, 0, iperfPort)
	sluice.ns, sluice.serverNS, sluice.procs = b.client.NS, b.server.NS, []string{"ztunnel-node1", "ztunnel-node2"}
	haproxy := to("haproxy", local, haproxyIn, iperfPort)
	haproxy.procs = []string{"haproxy-client", "haproxy-server"}
	nginx := to("nginx", local, nginxIn, iperfPort)
	nginx.procs = []string{"pair-nginx-client", "pair-nginx-server"}
	all := []way{sluice, haproxy, nginx, to("direct", b.pserver.Addr4, 0, plainPort)}
	return slices.DeleteFunc(all, func(w way) bool { return !b.takes(w.name) })
}

// proxied are the ways with proxies in them.
func (b *bench) proxied() []way {
	return slices.DeleteFunc(b.ways(), func(w way) bool { return w.procs == nil })
}
