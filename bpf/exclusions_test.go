// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// excludedNets hold each family's member, the port below no address of it.
var excludedNets = Exclusions{
	CIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.3/32"), netip.MustParsePrefix("fd01::/126")},
	Ports: []uint16{8443},
}

func TestExclusionsComeBeforeEverything(t *testing.T) {
	for _, set := range []settings{{}, {captureAll: true}, {captureDNS: true}} {
		b := newBenchWith(t, set, excludedNets)
		b.fillSlots(t)
		for _, f := range bothFamilies {
			b.mesh(t, f.member.Addr(), f.stranger.Addr())
		}
		for _, f := range bothFamilies {
			port := func(a netip.AddrPort, p uint16) netip.AddrPort { return netip.AddrPortFrom(a.Addr(), p) }
			syn := func(dst netip.AddrPort) frame { return frame{src: f.pod, dst: dst, flags: flagSYN} }
			data := func(dst netip.AddrPort) frame {
				return frame{src: f.pod, dst: dst, flags: flagACK, payload: []byte("x")}
			}
			for _, tt := range []struct {
				name    string
				frame   frame
				act     uint32
				verdict Verdict
				guard   uint32
			}{
				{"SYN into the network", syn(f.member), actNext, VerdictExcluded, actNext},
				{"SYN to port 53 of the network", syn(port(f.member, 53)), actNext, VerdictExcluded, actNext},
				{"SYN to the port", syn(port(f.stranger, 8443)), actNext, VerdictExcluded, actNext},
				{"SYN to neither", syn(f.stranger), actRedirect, VerdictCaptured, actShot},
				{"data into the network", data(f.member), actNext, VerdictStrayPassthrough, actNext},
				{"data to neither", data(f.stranger), actShot, VerdictDropStray, actNext},
			} {
				t.Run(fmt.Sprintf("%s %+v %s", f.name, set, tt.name), func(t *testing.T) {
					if got := b.packet(t, b.Capture, tt.frame.bytes(), 0); got.act != tt.act {
						t.Errorf("capture: got %d, want %d", int32(got.act), int32(tt.act))
					}
					b.wantCounted(t, tt.verdict)
					if got := b.packet(t, b.Guard, tt.frame.bytes(), 0); got.act != tt.guard {
						t.Errorf("guard: got %d, want %d", int32(got.act), int32(tt.guard))
					}
					b.counted(t)
				})
			}
		}
		// Of a fragment only the addresses count.
		v4 := bothFamilies[0]
		whole := frame{src: v4.pod, dst: v4.member, flags: flagSYN, fragment: ipv4MoreFrags}
		if got := b.packet(t, b.Capture, whole.bytes(), 0); got.act != actNext {
			t.Errorf("fragment into the network: got %d, want %d", int32(got.act), -1)
		}
		whole.dst = netip.AddrPortFrom(v4.stranger.Addr(), 8443)
		if got := b.packet(t, b.Capture, whole.bytes(), 0); got.act != actShot {
			t.Errorf("fragment to the port: got %d, want %d", int32(got.act), actShot)
		}
	}
}

func TestExclusionsCoverWhatThePodsProgramsPass(t *testing.T) {
	for dst, want := range map[string]bool{
		"10.1.0.3:1": true, "10.1.0.4:1": false, "[fd01::3]:1": true, "[fd01::4]:1": false, "192.0.2.1:8443": true,
		"[::ffff:10.1.0.3]:1": true,
	} {
		if got := excludedNets.Covers(netip.MustParseAddrPort(dst)); got != want {
			t.Errorf("%s: got %v, want %v", dst, got, want)
		}
	}
}

// TestExclusionsOfOneFamilyLeaveTheOther: also where IPv4 addresses, mapped, lie inside an IPv6 network.
func TestExclusionsOfOneFamilyLeaveTheOther(t *testing.T) {
	for _, cidr := range []string{"::/0", "::/64", "::/80", "::ffff:0:0:0/95", "0.0.0.0/0"} {
		e := Exclusions{CIDRs: []netip.Prefix{netip.MustParsePrefix(cidr)}}
		b := newBenchWith(t, settings{captureAll: true}, e)
		b.fillSlots(t)
		for _, f := range bothFamilies {
			for _, dst := range []netip.AddrPort{f.member, f.stranger} {
				want := VerdictCaptured
				if e.Covers(dst) {
					want = VerdictExcluded
				}
				b.packet(t, b.Capture, frame{src: f.pod, dst: dst, flags: flagSYN}.bytes(), 0)
				t.Logf("%s: %v: want %v", cidr, dst, want)
				b.wantCounted(t, want)
			}
		}
	}
}

func TestBadExclusionsAreNamed(t *testing.T) {
	var many Exclusions
	for range MaxExclusions + 1 {
		many.Ports = append(many.Ports, 80)
		many.CIDRs = append(many.CIDRs, netip.MustParsePrefix("10.0.0.0/8"))
	}
	for want, e := range map[string]Exclusions{
		"excluded network invalid Prefix":      {CIDRs: []netip.Prefix{{}}},
		"excluded network ::ffff:10.0.0.0/104": {CIDRs: []netip.Prefix{netip.MustParsePrefix("::ffff:10.0.0.0/104")}},
		"excluded port 0":                      {Ports: []uint16{0}},
		"33 excluded networks: at most 32":     many,
		"33 excluded ports: at most 32":        many,
	} {
		cfg := PodConfig{ID: "x", NetnsPath: "/x", Interfaces: []string{"eth0"}, Exclude: e}
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want one with %q", err, want)
		}
	}
}

// TestExclusionsChangeWhileThePodRuns: an excluded connection goes to the peer itself, past guard; after the settings
// changed a new one is captured, and the old one goes on.
func TestExclusionsChangeWhileThePodRuns(t *testing.T) {
	w := newWorld(t)
	client, server := w.host.Pod(t, "client"), w.host.Pod(t, "server")
	w.mesh(t, client, server)
	e := w.enrol(t, client)
	eachFamily(t, func(t *testing.T, family string) {
		addr := netip.AddrPortFrom(server.Addr(family), 8080)
		server.Echo(t, "server", addr.String())
		exclude := func(c *PodConfig) {
			c.Exclude.CIDRs = []netip.Prefix{netip.PrefixFrom(server.Addr4, 32), netip.PrefixFrom(server.Addr6, 128)}
		}
		w.attach(t, client, exclude)
		wantAnswer(t, client.NS, addr, "server", netip.Addr{})
		e.wantVerdict(t, VerdictExcluded, 1)
		talk := dial(t, client.NS, addr)
		w.attach(t, client)
		if err := testutil.Ping(talk); err != nil {
			t.Errorf("a connection from before the change: %v", err)
		}
		wantAnswer(t, client.NS, addr, "outbound@"+addr.String(), netip.Addr{})
		if got := e.count(t, VerdictDropLeak); got != 0 {
			t.Errorf("guard refused %d", got)
		}
	})
}

// TestBypassInbound: what comes from the network goes to the app, and the answers go out; outbound and HBONE are as ever.
func TestBypassInbound(t *testing.T) {
	w := newWorld(t)
	client, server := w.host.Pod(t, "client"), w.host.Pod(t, "server")
	w.mesh(t, client, server)
	bypass := func(c *PodConfig) { c.BypassInbound = true }
	e := w.enrol(t, server, bypass)
	eachFamily(t, func(t *testing.T, family string) {
		addr := netip.AddrPortFrom(server.Addr(family), 8080)
		server.Echo(t, "server", addr.String())
		wantAnswer(t, client.NS, addr, "server", client.Addr(family))
		e.wantVerdict(t, VerdictBypassInbound, 1)
		e.wantVerdict(t, VerdictBypassReply, 1)
		talk := dial(t, client.NS, addr)
		for range 3 {
			if err := testutil.Ping(talk); err != nil {
				t.Error(err)
			}
		}
		tls := netip.AddrPortFrom(server.Addr(family), HBONEPort)
		wantAnswer(t, client.NS, tls, "hbone@"+tls.String(), netip.Addr{})
		back := netip.AddrPortFrom(client.Addr(family), 9090)
		client.Echo(t, "client", back.String())
		wantAnswer(t, server.NS, back, "outbound@"+back.String(), netip.Addr{})
	})
}

// dial opens a connection whose first line, an Echo's, is read.
func dial(t *testing.T, from *testutil.NS, addr netip.AddrPort) net.Conn {
	t.Helper()
	c, err := from.Dial(context.Background(), "tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if _, err := testutil.Ask(c); err != nil {
		t.Fatal(err)
	}
	return c
}
