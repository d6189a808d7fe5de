// SPDX-License-Identifier: Apache-2.0

package strange

import (
	"context"
	"net"
	"net/netip"
	"testing"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/internal/lab"
)

// from binds to an address of the pod before it connects.
func (s *strange) from(source map[int]netip.Addr) dialer {
	return func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
		family := 6
		if to.Addr().Is4() {
			family = 4
		}
		d := &net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(source[family], 0))}
		return s.DialWith(ctx, d, "tcp", to.String())
	}
}

// route has the node send addresses to the pod, as an operator of such addresses does.
func (s *strange) route(addrs map[int]netip.Addr) {
	node := namespaceOf(s.w.Nodes[0].NS)
	far := namespaceOf(s.w.Nodes[1].NS)
	for family, a := range addrs {
		via := map[int]netip.Addr{4: s.w.Nodes[0].Wire4, 6: s.w.Nodes[0].Wire6}[family]
		node.Run(s.t, "ip", "route", "add", a.String(), "via", s.Addr(family).String())
		far.Run(s.t, "ip", "route", "add", a.String(), "via", via.String())
	}
	s.t.Cleanup(func() {
		for _, a := range addrs {
			_, _ = node.Try("ip", "route", "del", a.String())
			_, _ = far.Try("ip", "route", "del", a.String())
		}
	})
}

// reachedInClear has clients of both kinds reach the pod at addresses that the control plane does not know: they pass
// through at the client's end, and through ztunnel, with policies, at the pod's.
func (s *strange) reachedInClear(what string, addrs map[int]netip.Addr) {
	s.t.Helper()
	s.leaks.SetMembers() // what begins now may be in clear
	defer s.leaks.SetMembers(s.members()...)
	for family, a := range addrs {
		to := netip.AddrPortFrom(a, echoPort)
		for _, client := range []*lab.Pod{s.w.peer, s.w.legacy} {
			before := s.count(bpf.VerdictInbound)
			if err := carry(plain(inside(client)), to, s.Pod.Name, client.Addr(family)); err != nil {
				s.t.Errorf("%s: %s to %v: %v", what, client.Name, to, err)
			}
			if s.count(bpf.VerdictInbound) == before {
				s.t.Errorf("%s: %s to %v went past ztunnel", what, client.Name, to)
			}
		}
	}
}

func TestSecondaryAddressesAddedLater(t *testing.T) {
	s := newStrange(t, "addresses")
	second := map[int]netip.Addr{4: netip.MustParseAddr("10.250.1.9"), 6: netip.MustParseAddr("fd00:10:250:1::9")}
	s.Run(t, "ip", "addr", "add", second[4].String()+"/32", "dev", "eth0")
	s.Run(t, "ip", "addr", "add", second[6].String()+"/128", "dev", "eth0", "nodad")
	s.route(second)
	s.everyWay("from the first address")
	s.outbound("from a second address", s.from(second))
	s.passthrough("from a second address", s.from(second))
	s.reachedInClear("to a second address", second)
}

func TestAddressesOnLoopback(t *testing.T) {
	s := newStrange(t, "anycast")
	anycast := map[int]netip.Addr{4: netip.MustParseAddr("10.250.2.9"), 6: netip.MustParseAddr("fd00:10:250:2::9")}
	s.Run(t, "ip", "addr", "add", anycast[4].String()+"/32", "dev", "lo")
	s.Run(t, "ip", "addr", "add", anycast[6].String()+"/128", "dev", "lo", "nodad")
	s.route(anycast)
	s.everyWay("with addresses on lo")
	s.reachedInClear("to an address on lo", anycast)
	s.outbound("from an address on lo", s.from(anycast))
	own := []netip.Addr{anycast[4], anycast[6], netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("::1"), s.Addr4, s.Addr6}
	before := s.count(bpf.VerdictInbound) + s.count(bpf.VerdictOutbound)
	for _, a := range own {
		if err := carry(plain(s.NS), netip.AddrPortFrom(a, echoPort), "anycast", a.Unmap()); err != nil && a != netip.MustParseAddr("127.0.0.2") {
			t.Errorf("to itself at %v: %v", a, err)
		} else if err != nil {
			// The kernel's own choice of source for 127.0.0.2 is 127.0.0.1.
			if err := carry(plain(s.NS), netip.AddrPortFrom(a, echoPort), "anycast", netip.MustParseAddr("127.0.0.1")); err != nil {
				t.Errorf("to itself at %v: %v", a, err)
			}
		}
	}
	if after := s.count(bpf.VerdictInbound) + s.count(bpf.VerdictOutbound); after != before {
		t.Errorf("ztunnel took part in %d calls of the pod to itself", after-before)
	}
}

func TestPodThatCallsItself(t *testing.T) {
	s := newStrange(t, "self")
	s.everyWay("before")
	vip := map[int]netip.Addr{4: netip.MustParseAddr("10.96.0.20"), 6: netip.MustParseAddr("fd00:10:96::20")}
	for _, family := range []int{4, 6} {
		before := s.count(bpf.VerdictLocalFlow)
		if err := carry(plain(s.NS), at(s.Pod, family), "self", s.Addr(family)); err != nil {
			t.Errorf("to its own address: %v", err)
		}
		if s.count(bpf.VerdictLocalFlow) == before {
			t.Errorf("IPv%d: a call to its own address was not left alone", family)
		}
		to := netip.AddrPortFrom(vip[family], 80)
		captured := s.count(bpf.VerdictCaptured)
		err := lab.Poll(effect, func() error { return carry(plain(s.NS), to, "self", netip.Addr{}) })
		if err != nil {
			t.Errorf("to its own service: %v", err)
		}
		if s.count(bpf.VerdictCaptured) == captured {
			t.Errorf("IPv%d: a call to its own service was not captured", family)
		}
		s.viaMTLS("to a service", "peer", s.w.Nodes[0], at(s.Pod, family), func() error {
			return carry(plain(inside(s.w.peer)), to, "self", s.w.peer.Addr(family))
		})
	}
}

// TestPeersByAddress is what Cassandra, Galera and the like do: every pod to every other, by address, itself included.
func TestPeersByAddress(t *testing.T) {
	first := newStrange(t, "db0")
	pods := []*strange{first, first.w.add(t, "db1"), first.w.add(t, "db2")}
	for _, from := range pods {
		from.outbound("to another node", plain(from.NS))
		for _, to := range pods {
			for _, family := range []int{4, 6} {
				try := func() error {
					return carry(plain(from.NS), at(to.Pod, family), to.Pod.Name, from.Addr(family))
				}
				if from == to {
					if err := try(); err != nil {
						t.Errorf("%s to itself: %v", from.Pod.Name, err)
					}
					continue
				}
				from.viaMTLS("to "+to.Pod.Name, from.Pod.Name, from.w.Nodes[0], at(to.Pod, family), try)
			}
		}
	}
}
