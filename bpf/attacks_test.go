// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// siege is a pod with an attacker in it, and a server in the mesh that answers whoever reaches it.
type siege struct {
	*world
	client *enrolled
	server *testutil.Pod
	wire   *wire
}

// besiege makes the pods; at the end nothing may have gone from client to server, and from others no payload and no SYN:
// a neighbour that is sent the answer to a spoofed SYN resets it.
func besiege(t *testing.T) *siege {
	t.Helper()
	w := newWorld(t)
	s := &siege{world: w, client: w.enrol(t, w.host.Pod(t, "client")), server: w.host.Pod(t, "server")}
	w.mesh(t, s.server)
	for _, family := range []string{"4", "6"} {
		s.server.Echo(t, "server", s.target(family).String())
	}
	s.wire = sniff(t, w.host.NS, s.server.HostIf)
	t.Cleanup(func() {
		s.wire.wantNoneTo(t, s.client.Pod, s.server)
	})
	return s
}

// target is the server's port, which is not in clear to be had.
func (s *siege) target(family string) netip.AddrPort {
	return netip.AddrPortFrom(s.server.Addr(family), 80)
}

// tryTarget connects as an app would, and wants the proxy to answer, or nobody.
func (s *siege) tryTarget(t *testing.T, what string, from *testutil.NS, d *net.Dialer, family string) {
	t.Helper()
	if d == nil {
		d = &net.Dialer{}
	}
	d.Timeout = 300 * time.Millisecond
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	c, err := from.DialWith(ctx, d, "tcp", s.target(family).String())
	if err != nil {
		return
	}
	defer func() { _ = c.Close() }()
	_, _ = fmt.Fprintln(c, "data") // with fast open this is what sends the SYN
	if got, _ := testutil.Ask(c); got.Name != "" && !strings.HasPrefix(got.Name, "outbound@") {
		t.Errorf("%s: IPv%s: %q answered", what, family, got.Name)
	}
}

// run is a command of the attacker's, which may be refused.
func (s *siege) run(t *testing.T, command string) {
	t.Helper()
	args := strings.Fields(command)
	if out, err := s.client.Try(args[0], args[1:]...); err != nil {
		t.Logf("%s: refused: %s", command, strings.TrimSpace(out))
	}
}

// TestOwnFiltersDoNotLeadOut: the pod's filters run after ours, so they see only what we let pass; in clsact mode they may
// run before, and then guard stops what they let out.
func TestOwnFiltersDoNotLeadOut(t *testing.T) {
	s := besiege(t)
	s.run(t, "ip link add name twin type veth peer name niwt")
	s.run(t, "ip link set twin up")
	s.run(t, "ip link set niwt up")
	s.run(t, "tc qdisc add dev eth0 clsact") // there already where our programs are filters
	s.run(t, "tc qdisc add dev lo clsact")
	for _, filter := range []string{
		"tc filter add dev eth0 egress prio 2 protocol all u32 match u32 0 0 flowid 1:1", // accepts, and ends the chain
		"tc filter add dev eth0 egress prio 3 protocol all u32 match u32 0 0 action mirred egress redirect dev twin",
		"tc filter add dev lo egress prio 3 protocol all u32 match u32 0 0 action mirred egress redirect dev eth0",
		"tc filter add dev lo ingress prio 3 protocol all u32 match u32 0 0 action mirred egress redirect dev eth0",
	} {
		s.client.Run(t, strings.Fields(filter)[0], strings.Fields(filter)[1:]...)
		eachFamily(t, func(t *testing.T, family string) { s.tryTarget(t, filter, s.client.NS, nil, family) })
	}
}

// TestOwnRulesAndRoutesDoNotLeadOut: captured packets may go astray, but not to the server.
func TestOwnRulesAndRoutesDoNotLeadOut(t *testing.T) {
	s := besiege(t)
	for _, commands := range [][2]string{
		{"ip rule add priority 1 fwmark 0x3000/0x3000 lookup main", "ip rule del priority 1"},
		{"ip -6 rule add priority 1 fwmark 0x3000/0x3000 lookup main", "ip -6 rule del priority 1"},
		{"sysctl -q net.ipv4.ip_forward=1", "true"},
		{"ip rule add priority 2 iif lo lookup main", "ip rule del priority 2"},
		{"ip route add table 77 default dev eth0", "true"},
		{"ip rule add priority 3 lookup 77", "ip rule del priority 3"},
		{"sysctl -q net.ipv6.conf.all.forwarding=1", "true"},
	} {
		s.run(t, commands[0])
		eachFamily(t, func(t *testing.T, family string) { s.tryTarget(t, commands[0], s.client.NS, nil, family) })
		s.run(t, commands[1])
	}
}

// TestTranslationInThePodDoesNotLeadOut: what nftables makes of a packet is what capture sees, for the first packet and
// for later ones of a connection that was let pass.
func TestTranslationInThePodDoesNotLeadOut(t *testing.T) {
	s := besiege(t)
	outside := s.host.Pod(t, "outside")
	eachFamily(t, func(t *testing.T, family string) {
		ip := map[string]string{"4": "ip", "6": "ip6"}[family]
		stranger := netip.AddrPortFrom(outside.Addr(family), 80)
		outside.Echo(t, "outside", stranger.String())
		open := dial(t, s.client.NS, stranger)
		if err := testutil.Ping(open); err != nil {
			t.Fatal(err)
		}
		// From now on every packet to the stranger names the server.
		table := "attack" + family
		s.client.Run(t, "nft", "add", "table", ip, table)
		s.client.Run(t, "nft", "add", "chain", ip, table, "late", "{ type filter hook postrouting priority 300 ; }")
		s.client.Run(t, "nft", "add", "rule", ip, table, "late", ip, "daddr", outside.Addr(family).String(), ip, "daddr", "set", s.server.Addr(family).String())
		_ = open.SetDeadline(time.Now().Add(300 * time.Millisecond))
		if _, err := fmt.Fprintln(open, "secret"); err != nil {
			t.Log(err)
		}
		s.client.wantVerdict(t, VerdictDropStray, 1)
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if c, err := s.client.Dial(ctx, "tcp", stranger.String()); err == nil {
			got, err := testutil.Ask(c)
			if err == nil && !strings.HasPrefix(got.Name, "outbound@") {
				t.Errorf("%q answered", got.Name)
			}
			_ = c.Close()
		}
		s.client.Run(t, "nft", "delete", "table", ip, table)
	})
}

// TestOtherDevicesOverEth0DoNotLeadOut: a macvlan sends through eth0, in the pod and out of a namespace inside the pod.
func TestOtherDevicesOverEth0DoNotLeadOut(t *testing.T) {
	s := besiege(t)
	nested := testutil.NetNS(t, "nested")
	for i, ns := range []*testutil.NS{s.client.NS, nested} {
		dev := fmt.Sprintf("mv%d", i)
		s.client.Run(t, "ip", "link", "add", dev, "link", "eth0", "type", "macvlan", "mode", "bridge")
		if ns != s.client.NS {
			s.client.Run(t, "ip", "link", "set", dev, "netns", ns.Name)
		}
		for _, family := range []string{"4", "6"} {
			own := s.client.Addr(family).String()
			if ns == s.client.NS { // the pod has its address already, and sends out of the device by hand
				_, _ = ns.Try("ip", "link", "set", dev, "up")
				s.tryTarget(t, "macvlan", ns, &net.Dialer{Control: bindToDevice(dev)}, family)
				continue
			}
			_, _ = ns.Try("ip", "link", "set", dev, "up")
			_, _ = ns.Try("ip", "addr", "add", own+map[string]string{"4": "/32", "6": "/128"}[family], "dev", dev, "nodad")
			_, _ = ns.Try("ip", "-"+family, "route", "add", "default", "dev", dev)
			mac := macOf(t, s.host.NS, s.client.HostIf).String()
			_, _ = ns.Try("ip", "neigh", "replace", s.server.Addr(family).String(), "lladdr", mac, "dev", dev)
			s.tryTarget(t, "macvlan in a nested namespace", ns, nil, family)
		}
	}
}

func bindToDevice(dev string) func(string, string, syscall.RawConn) error {
	return func(_, _ string, raw syscall.RawConn) (err error) {
		if e := raw.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), dev) }); e != nil {
			return e
		}
		return err
	}
}

// TestEth0InANestedNamespaceDoesNotLeadOut: its capture goes with it, and there is nothing there to lead to the proxy.
func TestEth0InANestedNamespaceDoesNotLeadOut(t *testing.T) {
	s := besiege(t)
	nested := testutil.NetNS(t, "nested")
	mac := macOf(t, s.host.NS, s.client.HostIf).String()
	s.client.Run(t, "ip", "link", "set", "eth0", "netns", nested.Name)
	nested.Run(t, "ip", "link", "set", "eth0", "up")
	for _, family := range []string{"4", "6"} {
		nested.Run(t, "ip", "addr", "add", s.client.Addr(family).String()+map[string]string{"4": "/32", "6": "/128"}[family], "dev", "eth0", "nodad")
		nested.Run(t, "ip", "-"+family, "route", "add", "default", "dev", "eth0")
		nested.Run(t, "ip", "neigh", "replace", s.server.Addr(family).String(), "lladdr", mac, "dev", "eth0")
		s.tryTarget(t, "eth0 in a nested namespace", nested, nil, family)
	}
	if got := s.client.count(t, VerdictCaptured); got == 0 && !isClsact() {
		t.Error("capture counted nothing: the SYNs did not meet it")
	}
}

// TestSpoofedSourcesAreCaptured: whose address a packet bears does not matter.
func TestSpoofedSourcesAreCaptured(t *testing.T) {
	s := besiege(t)
	neighbour := s.host.Pod(t, "neighbour")
	raw := newRawSocket(t, s.host, s.client.Pod, false)
	bypass := newRawSocket(t, s.host, s.client.Pod, true)
	eachFamily(t, func(t *testing.T, family string) {
		f := frame{src: netip.AddrPortFrom(neighbour.Addr(family), 5555), dst: s.target(family), flags: flagSYN}
		before, leaks := s.client.count(t, VerdictCaptured), s.client.count(t, VerdictDropLeak)
		raw.send(t, f)
		s.client.wantVerdict(t, VerdictCaptured, before+1)
		bypass.send(t, f)
		s.client.wantVerdict(t, VerdictDropLeak, leaks+1)
	})
}

// TestFragmentsAreRefused: hand-made ones, past tc and not. The first carries the ports, or is too small to.
func TestFragmentsAreRefused(t *testing.T) {
	s := besiege(t)
	for _, bypass := range []bool{false, true} {
		raw := newRawSocket(t, s.host, s.client.Pod, bypass)
		want := map[bool]Verdict{false: VerdictDropFragment, true: VerdictDropLeakFragment}[bypass]
		for _, offset := range []uint16{ipv4MoreFrags, 1, ipv4MoreFrags | 1, 3} {
			before := s.client.count(t, want)
			raw.send(t, frame{src: netip.AddrPortFrom(s.client.Addr4, 5555), dst: s.target("4"), flags: flagSYN, fragment: offset})
			s.client.wantVerdict(t, want, before+1)
		}
	}
}

// TestFastOpenAndMultipathAreCaptured: data in the SYN, and MPTCP's sockets.
func TestFastOpenAndMultipathAreCaptured(t *testing.T) {
	s := besiege(t)
	const fastOpenConnect = 30 // TCP_FASTOPEN_CONNECT
	s.run(t, "sysctl -q net.ipv4.tcp_fastopen=0x605")
	eachFamily(t, func(t *testing.T, family string) {
		s.tryTarget(t, "fast open", s.client.NS, &net.Dialer{Control: func(_, _ string, raw syscall.RawConn) (err error) {
			if e := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_TCP, fastOpenConnect, 1) }); e != nil {
				return e
			}
			return err
		}}, family)
		multipath := &net.Dialer{}
		multipath.SetMultipathTCP(true)
		s.tryTarget(t, "multipath", s.client.NS, multipath, family)
		s.client.wantVerdict(t, VerdictCaptured, 1)
	})
}
