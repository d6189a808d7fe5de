// SPDX-License-Identifier: Apache-2.0

package strange

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/internal/netns"
	"github.com/sluice-mesh/sluice/internal/testutil"

	"github.com/vishvananda/netlink"
)

// guest is a namespace behind a bridge in the pod: a container of a pod's own runtime, or a virtual machine's interface.
//
//	guest eth0 ── veth ── bridge in the pod ── (forwarded) ── eth0 of the pod
type guest struct {
	*testutil.NS
	addr map[int]netip.Addr
}

func (s *strange) guest(t *testing.T, bridge string) *guest {
	t.Helper()
	g := &guest{testutil.NetNS(t, "guest"), map[int]netip.Addr{4: netip.MustParseAddr("172.30.0.2"), 6: netip.MustParseAddr("fd00:172:30::2")}}
	ns, err := netns.Open(g.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ns.Close() }()
	s.MustDo(t, func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "port0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns.FD())})
	})
	ip(t, s.NS, "link add "+bridge+" type bridge", "addr add 172.30.0.1/24 dev "+bridge, "addr add fd00:172:30::1/64 dev "+bridge+" nodad",
		"link set port0 master "+bridge+" up", "link set "+bridge+" up")
	ip(t, g.NS, "addr add 172.30.0.2/24 dev eth0", "addr add fd00:172:30::2/64 dev eth0 nodad", "link set eth0 up",
		"route add default via 172.30.0.1", "-6 route add default via fd00:172:30::1")
	for _, key := range []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"} {
		s.Sysctl(t, key, "1")
	}
	return g
}

// masquerade hides guests behind the pod's address, as docker and KubeVirt do.
func (s *strange) masquerade(t *testing.T) {
	t.Helper()
	s.Run(t, "nft", `add table inet guests; add chain inet guests post { type nat hook postrouting priority 100; };
		add rule inet guests post oifname "eth0" ip saddr 172.30.0.0/24 masquerade; add rule inet guests post oifname "eth0" ip6 saddr fd00:172:30::/64 masquerade`)
}

// publish leads a port of the pod to the guest, whoever comes.
func (s *strange) publish(t *testing.T, g *guest, port uint16) {
	t.Helper()
	rule := func(chain, family, address string) string {
		return fmt.Sprintf("add rule inet published %s %s daddr %s tcp dport %d dnat %s to %s; ", chain, family, address, port, family,
			map[string]string{"ip": netip.AddrPortFrom(g.addr[4], echoPort).String(), "ip6": netip.AddrPortFrom(g.addr[6], echoPort).String()}[family])
	}
	script := "add table inet published; add chain inet published pre { type nat hook prerouting priority -100; }; add chain inet published out { type nat hook output priority -100; }; "
	for _, chain := range []string{"pre", "out"} {
		script += rule(chain, "ip", s.Addr4.String()) + rule(chain, "ip6", s.Addr6.String())
	}
	s.Run(t, "nft", script)
}

// TestContainersBehindAPod: the pod keeps all it had, and its containers reach what is no mesh. What they send to the mesh
// is captured, and goes nowhere rather than in clear; docs/PODS.md says why.
func TestContainersBehindAPod(t *testing.T) {
	s := newStrange(t, "docker")
	g := s.guest(t, "docker0")
	s.everyWay("the pod itself, with a bridge")
	s.neverInClear(g, "container")
	s.masquerade(t)
	s.everyWay("the pod itself, with address translation")
	s.passthrough("container behind address translation", plain(g.NS))
	s.neverInClear(g, "container behind address translation")
}

// neverInClear has a guest try the mesh: nobody answers, unless by mutual TLS.
func (s *strange) neverInClear(g *guest, what string) {
	s.t.Helper()
	for _, family := range []int{4, 6} {
		captured := s.count(bpf.VerdictCaptured)
		var answered bool
		ctx, cancel := context.WithTimeout(s.t.Context(), time.Second)
		if c, err := g.Dial(ctx, "tcp", at(s.w.peer, family).String()); err == nil {
			_ = c.SetReadDeadline(time.Now().Add(time.Second))
			_, err = c.Read(make([]byte, 1))
			answered = err == nil
			_ = c.Close()
		}
		cancel()
		if s.count(bpf.VerdictCaptured) == captured {
			s.t.Errorf("%s over IPv%d: not captured", what, family)
		}
		clear := s.w.lines(s.w.Nodes[1], `"direction":"inbound"`, `"verdict":"plaintext"`, `"src.addr":"`+addrText(s.Addr(family))+":")
		if len(clear) > 0 {
			s.t.Errorf("%s over IPv%d: answered %v, in clear: %v", what, family, answered, clear)
		}
	}
}

func addrText(a netip.Addr) string {
	if a.Is6() {
		return "[" + a.String() + "]"
	}
	return a.String()
}

// TestVirtualMachineBehindAPod is KubeVirt's masquerade binding: the guest has what comes to the pod, by address translation.
func TestVirtualMachineBehindAPod(t *testing.T) {
	s := newStrange(t, "tap")
	g := s.guest(t, "k6t-eth0")
	s.masquerade(t)
	go serve(g.Listen(t, "tcp", fmt.Sprintf("[::]:%d", echoPort)), "tap")
	const port = 7001
	s.publish(t, g, port)
	s.everyWay("the pod itself, with a guest")
	for _, family := range []int{4, 6} {
		to := netip.AddrPortFrom(s.Addr(family), port)
		s.viaMTLS("port of the guest", "peer", s.w.Nodes[0], to, func() error {
			return carry(plain(inside(s.w.peer)), to, "tap", s.w.peer.Addr(family))
		})
		if err := carry(plain(inside(s.w.legacy)), to, "tap", s.w.legacy.Addr(family)); err != nil {
			t.Errorf("port of the guest: in clear to %v: %v", to, err)
		}
	}
}
