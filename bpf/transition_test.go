// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// TestSettingsChangeBetweenPackets: the programs of a pod are replaced one after another, and between any two of them
// everything is answered, by the rules of before or by those of after. Nothing is refused, and guard raises no alarm.
func TestSettingsChangeBetweenPackets(t *testing.T) {
	w := newWorld(t)
	client, server := w.host.Pod(t, "client"), w.host.Pod(t, "server")
	w.mesh(t, client, server)
	e := w.enrol(t, client)
	newResolver(t, e)
	for _, family := range []string{"4", "6"} {
		server.Echo(t, "server", netip.AddrPortFrom(server.Addr(family), 8080).String())
		client.Echo(t, "client", netip.AddrPortFrom(client.Addr(family), 9090).String())
		serveDNS(t, server.NS, netip.AddrPortFrom(server.Addr(family), 53))
	}
	steps := 0
	faults = func(step string) {
		if strings.HasPrefix(step, "has ") {
			steps++
			wantAllAnswered(t, step, client, server)
		}
	}
	t.Cleanup(func() { faults = nil })
	full := func(c *PodConfig) {
		c.CaptureDNS, c.BypassInbound = true, true
		c.Exclude.Ports = []uint16{8080}
	}
	other := func(c *PodConfig) {
		c.Exclude.CIDRs = []netip.Prefix{netip.PrefixFrom(server.Addr4, 32), netip.PrefixFrom(server.Addr6, 128)}
	}
	for _, edit := range []func(*PodConfig){full, other, full, func(*PodConfig) {}} {
		w.attach(t, client, edit)
	}
	if want := 4 * (3 + 4); steps != want {
		t.Errorf("looked after %d programs, want %d", steps, want)
	}
	got, err := e.bpf.Verdicts()
	if err != nil {
		t.Fatal(err)
	}
	for v, n := range got {
		if v.IsDrop() && n > 0 {
			t.Errorf("%v: got %d, want none", v, n)
		}
	}
}

func wantAllAnswered(t *testing.T, step string, client, server *testutil.Pod) {
	t.Helper()
	for _, family := range []string{"4", "6"} {
		to := func(p *testutil.Pod, port uint16) netip.AddrPort { return netip.AddrPortFrom(p.Addr(family), port) }
		if got, err := client.AskFrom(to(server, 8080)); err != nil {
			t.Errorf("%s, IPv%s: outbound: got %q, %v", step, family, got.Name, err)
		}
		if got, err := server.AskFrom(to(client, 9090)); err != nil {
			t.Errorf("%s, IPv%s: inbound: got %q, %v", step, family, got.Name, err)
		}
		if got, from, err := query(client.NS, to(server, 53), true); err != nil {
			t.Errorf("%s, IPv%s: query: got %q from %v, %v", step, family, got, from, err)
		}
	}
}

// serveDNS answers each datagram with itself.
func serveDNS(t *testing.T, ns *testutil.NS, addr netip.AddrPort) {
	t.Helper()
	var c net.PacketConn
	ns.MustDo(t, func() (err error) {
		c, err = net.ListenPacket("udp", addr.String())
		return err
	})
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		buf := make([]byte, 512)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(buf[:n], from)
		}
	}()
}
