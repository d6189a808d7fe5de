// SPDX-License-Identifier: Apache-2.0

package strange

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

func ip(t *testing.T, ns *testutil.NS, lines ...string) {
	t.Helper()
	for _, line := range lines {
		ns.Run(t, "ip", strings.Fields(line)...)
	}
}

// gateway is where the pod's default route leads.
func (s *strange) gateway(family string) string {
	s.t.Helper()
	fields := strings.Fields(s.Run(s.t, "ip", family, "route", "show", "default"))
	if len(fields) < 3 || fields[1] != "via" {
		s.t.Fatalf("default route: %q", fields)
	}
	return fields[2]
}

// TestPodWithItsOwnPolicyRouting has source and mark rules of its own, before and behind ours, and a table that takes all.
func TestPodWithItsOwnPolicyRouting(t *testing.T) {
	s := newStrange(t, "rules")
	for _, family := range []string{"-4", "-6"} {
		gw := s.gateway(family)
		own := map[string]netip.Addr{"-4": s.Addr4, "-6": s.Addr6}[family]
		ip(t, s.NS,
			family+" route add default via "+gw+" dev eth0 table 100",
			family+" rule add pref 90 fwmark 0x1/0xff lookup 100",
			family+" rule add pref 1000 from "+own.String()+" lookup 100",
			family+" rule add pref 1001 to all lookup 100",
			family+" route del default",
		)
	}
	s.everyWay("all by a table of its own")
	for _, family := range []string{"-4", "-6"} {
		// Some route daemons put the local table behind their own.
		ip(t, s.NS, family+" rule add pref 800 lookup local", family+" rule del pref 0")
	}
	s.everyWay("local table behind ours")
}

func TestPodWithStrictSysctls(t *testing.T) {
	s := newStrange(t, "sysctls")
	for _, set := range []map[string]string{
		{"net.ipv4.conf.all.rp_filter": "1", "net.ipv4.conf.eth0.rp_filter": "1", "net.ipv4.conf.lo.rp_filter": "1", "net.ipv4.tcp_syncookies": "2"},
		{"net.ipv4.conf.all.rp_filter": "2", "net.ipv4.conf.eth0.rp_filter": "2", "net.ipv4.conf.lo.rp_filter": "2"},
		{"net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1", "net.ipv4.tcp_tw_reuse": "1"},
		{"net.ipv4.ip_local_port_range": "40000 40049"},
	} {
		var names []string
		for key, value := range set {
			s.Sysctl(t, key, value)
			names = append(names, key+"="+value)
		}
		what := strings.Join(names, " ")
		for range 10 { // more than a range of 50 ports would hold, were ztunnel's own connections in it
			s.everyWay(what)
			if t.Failed() {
				return
			}
			if !strings.Contains(what, "port_range") {
				break
			}
		}
	}
}

// mtu sets both ends of a pod's link.
func (s *strange) mtu(t *testing.T, mtu string) {
	t.Helper()
	ip(t, s.NS, "link set dev eth0 mtu "+mtu)
	ip(t, namespaceOf(s.w.Nodes[0].NS), "link set dev "+s.hostEnd()+" mtu "+mtu)
}

func TestLargeMTU(t *testing.T) {
	s := newStrange(t, "large")
	s.mtu(t, "9000")
	s.everyWay("MTU 9000, on a wire of 1500")
}

func TestSmallMTU(t *testing.T) {
	s := newStrange(t, "small")
	s.mtu(t, "1280")
	s.everyWay("MTU 1280, on a wire of 1500")
}
