// SPDX-License-Identifier: Apache-2.0

package testutil

import (
	"fmt"
	"net/netip"
	"testing"
)

// Gateway addresses every pod of a Node sees; they are on the node's end of each pod's link.
var (
	gateway4 = netip.MustParseAddr("10.77.0.1")
	gateway6 = netip.MustParseAddr("fd77::1")
)

// Node is a namespace that routes between the pods attached to it, as the ptp plugin wires them:
//
//	pod eth0 10.77.0.2/32, fd77::2/128 ---veth--- podN 10.77.0.1/32, fd77::1/128  node (forwards)
//
// It has no default route and no link to the machine.
type Node struct {
	*NS
	pods int
}

// Pod is a namespace with an eth0 attached to a Node.
type Pod struct {
	*NS
	Addr4, Addr6 netip.Addr
	HostIf       string // the node's end of the link
	HostIfindex  int
}

// NewNode makes a node without pods.
func NewNode(t testing.TB) *Node {
	t.Helper()
	n := &Node{NS: NetNS(t, "node")}
	n.Sysctl(t, "net.ipv4.ip_forward", "1")
	n.Sysctl(t, "net.ipv6.conf.all.forwarding", "1")
	return n
}

// Pod attaches a new pod to the node. Its default routes lead to the node only.
func (n *Node) Pod(t testing.TB, label string) *Pod {
	t.Helper()
	n.pods++
	p := &Pod{
		NS:     NetNS(t, label),
		Addr4:  netip.AddrFrom4([4]byte{10, 77, 0, byte(n.pods + 1)}),
		Addr6:  netip.MustParseAddr(fmt.Sprintf("fd77::%x", n.pods+1)),
		HostIf: fmt.Sprintf("pod%d", n.pods),
	}
	Veth(t,
		End{p.NS, "eth0", []string{p.Addr4.String() + "/32", p.Addr6.String() + "/128"}},
		End{n.NS, p.HostIf, []string{gateway4.String() + "/32", gateway6.String() + "/128"}})
	p.HostIfindex = n.Ifindex(t, p.HostIf)
	for _, gw := range []netip.Addr{gateway4, gateway6} {
		p.Route(t, hostPrefix(gw), netip.Addr{}, "eth0")
		p.Route(t, netip.PrefixFrom(unspecified(gw), 0), gw, "eth0")
	}
	for _, addr := range []netip.Addr{p.Addr4, p.Addr6} {
		n.Route(t, hostPrefix(addr), netip.Addr{}, p.HostIf)
	}
	return p
}

// Addr returns the pod's address of a family, "4" or "6".
func (p *Pod) Addr(family string) netip.Addr {
	if family == "6" {
		return p.Addr6
	}
	return p.Addr4
}

func hostPrefix(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func unspecified(like netip.Addr) netip.Addr {
	if like.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}
