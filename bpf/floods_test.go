// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// TestFloodsOfAPodsOwnConnections: a pod connects to itself as fast as it can, which fills local_flows over and over.
// Deliveries go on, and what comes from the network still meets the proxy.
func TestFloodsOfAPodsOwnConnections(t *testing.T) {
	w := newWorld(t)
	client, pod := w.host.Pod(t, "client"), w.enrol(t, w.host.Pod(t, "pod"))
	pod.proxy.deliver.Store(true)
	w.mesh(t, pod.Pod)
	ctx, cancel := context.WithCancel(t.Context())
	var flood sync.WaitGroup
	for _, family := range []string{"4", "6"} {
		flood.Go(func() {
			for port := uint16(20000); ctx.Err() == nil; port++ {
				c, err := pod.Dial(ctx, "tcp", netip.AddrPortFrom(pod.Addr(family), max(port, 20000)).String())
				if err == nil {
					_ = c.Close()
				}
			}
		})
	}
	defer flood.Wait()
	defer cancel()
	pod.wantVerdict(t, VerdictLocalRecorded, 1)
	eachFamily(t, func(t *testing.T, family string) {
		addr := netip.AddrPortFrom(pod.Addr(family), 80)
		pod.Echo(t, "app", addr.String())
		for range 100 {
			wantAnswer(t, client.NS, addr, "app", client.Addr(family))
		}
	})
	testutil.Eventually(t, time.Minute, func() error { // local_flows has been filled twice by now
		if n := pod.count(t, VerdictLocalRecorded); n < 2*1024 {
			return fmt.Errorf("%d connections began on lo", n)
		}
		return nil
	})
	cancel()
	flood.Wait()
	if in, passed := pod.count(t, VerdictInbound), pod.count(t, VerdictProbe); in < 200 || passed > 0 {
		t.Errorf("from the network: %d to the proxy, want at least 200; %d passed", in, passed)
	}
}

// TestListenersHiddenAddressesAreOutOfReach: neither a neighbour, nor the host, nor the pod itself gets a connection to
// the proxy's listeners by their own addresses.
func TestListenersHiddenAddressesAreOutOfReach(t *testing.T) {
	w := newWorld(t)
	pod, neighbour := w.enrol(t, w.host.Pod(t, "pod")), w.host.Pod(t, "neighbour")
	w.mesh(t, pod.Pod)
	for _, ipv6 := range []bool{false, true} {
		addr := hidden[ipv6]
		// The node sends everything for these addresses to the pod, as a confused or hostile one would.
		w.host.Route(t, netip.PrefixFrom(addr, addr.BitLen()), netip.Addr{}, pod.HostIf)
		for port := uint16(1); port <= 30; port += 1 + port/4 { // those in use here, and some more
			for name, ns := range map[string]*testutil.NS{"neighbour": neighbour.NS, "host": w.host.NS, "pod": pod.NS} {
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				c, err := ns.DialWith(ctx, &net.Dialer{}, "tcp", netip.AddrPortFrom(addr, port).String())
				cancel()
				if err == nil {
					got, _ := testutil.Ask(c)
					t.Errorf("%s reached %v port %d: %q answered", name, addr, port, got.Name)
					_ = c.Close()
				}
			}
		}
	}
}

// TestSYNFloodOfTheProxysListeners: half-open connections from addresses that answer nothing fill the listener's queue.
// With cookies a client still gets through, and nothing gets past the proxy.
func TestSYNFloodOfTheProxysListeners(t *testing.T) {
	w := newWorld(t)
	server, legacy, attacker := w.enrol(t, w.host.Pod(t, "server")), w.host.Pod(t, "legacy"), w.host.Pod(t, "attacker")
	server.Sysctl(t, "net.ipv4.tcp_syncookies", "1")
	server.Sysctl(t, "net.ipv4.tcp_max_syn_backlog", "16")
	server.proxy.deliver.Store(true)
	raw := newRawSocket(t, w.host, attacker, false)
	eachFamily(t, func(t *testing.T, family string) {
		app := netip.AddrPortFrom(server.Addr(family), 80)
		server.Echo(t, "app", app.String())
		before := cookiesSent(t, server.NS)
		silent := map[string]netip.Addr{"4": netip.MustParseAddr("198.51.100.1"), "6": netip.MustParseAddr("2001:db8::1")}[family]
		for i := range uint16(20000) {
			raw.send(t, frame{src: netip.AddrPortFrom(silent, 1024+i), dst: app, flags: flagSYN})
			if i%500 == 499 {
				wantAnswer(t, legacy.NS, app, "app", legacy.Addr(family))
			}
		}
		if got := cookiesSent(t, server.NS) - before; got == 0 {
			t.Error("no SYN cookie was sent: the flood was none")
		}
	})
	if got, direct := server.count(t, VerdictInbound), server.count(t, VerdictProbe)+server.count(t, VerdictBypassInbound); got < 80 || direct > 0 {
		t.Errorf("to the proxy: %d, want at least 80; past it: %d", got, direct)
	}
}
