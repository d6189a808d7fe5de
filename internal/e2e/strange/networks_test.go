// SPDX-License-Identifier: Apache-2.0

package strange

import (
	"net/netip"
	"testing"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/internal/lab"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// TestSecondNetwork adds an interface to a running pod, as Multus does with a network whose chain ends in our plugin.
func TestSecondNetwork(t *testing.T) {
	s := newStrange(t, "twonets")
	second := lab.Network{Name: "net1br", Subnets: []netip.Prefix{netip.MustParsePrefix("10.251.0.0/24"), netip.MustParsePrefix("fd00:10:251::/64")}}
	addrs, err := s.w.Nodes[0].AddNetwork(s.Pod, second, "net1")
	if err != nil {
		t.Fatal(err)
	}
	own := map[int]netip.Addr{4: addrs[0], 6: addrs[1]}
	far := namespaceOf(s.w.Nodes[1].NS)
	ip(t, far, "route add 10.251.0.0/24 via "+s.w.Nodes[0].Wire4.String(), "-6 route add fd00:10:251::/64 via "+s.w.Nodes[0].Wire6.String())
	t.Cleanup(func() {
		_, _ = far.Try("ip", "route", "del", "10.251.0.0/24")
		_, _ = far.Try("ip", "-6", "route", "del", "fd00:10:251::/64")
	})
	s.everyWay("by the first network")
	// The way to the peer and to the host outside now leads over the second network.
	for _, to := range []netip.Addr{s.w.peer.Addr4, s.w.legacy.Addr4, lab.OutsideAddr4} {
		ip(t, s.NS, "route add "+to.String()+" via 10.251.0.1")
	}
	for _, to := range []netip.Addr{s.w.peer.Addr6, s.w.legacy.Addr6, lab.OutsideAddr6} {
		ip(t, s.NS, "-6 route add "+to.String()+" via fd00:10:251::1")
	}
	outside := namespaceOf(s.w.NS("outside"))
	ip(t, outside, "route add 10.251.0.0/24 via 10.242.0.1", "-6 route add fd00:10:251::/64 via fd00:10:242::1")
	s.outbound("by the second network", plain(s.NS))
	s.passthrough("by the second network", plain(s.NS))
	s.reachedInClear("to the second network's address", own)
	before := s.count(bpf.VerdictCaptured)
	if err := s.w.Nodes[0].DelNetwork(s.Pod, second, "net1"); err != nil {
		t.Fatal(err)
	}
	s.everyWay("after the second network is gone")
	if s.count(bpf.VerdictCaptured) <= before {
		t.Error("nothing captured after the second network was gone")
	}
}

// TestIPv6Only has no IPv4 on pods, nodes and wire, and a wire that is narrower than the pods' links.
func TestIPv6Only(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	testutil.RequireKernel(t, "6.6", "tcx")
	w, err := newWorld(true)
	if err != nil {
		t.Fatal(err)
	}
	s := w.add(t, "db0")
	if s.Addr4.IsValid() {
		t.Fatalf("the pod has IPv4: %v", s.Addr4)
	}
	s.everyWay("IPv6 only")
	for _, n := range w.Nodes {
		ip(t, namespaceOf(n.NS), "link set dev "+lab.WireIf+" mtu 1280")
	}
	s.everyWay("IPv6 only, narrow wire")
}
