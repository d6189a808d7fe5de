// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/internal/testutil"
	"github.com/sluice-mesh/sluice/ztunnel/discovery"
	"github.com/sluice-mesh/sluice/ztunnel/hbone"
)

func TestProxyHeaderBytes(t *testing.T) {
	const signature = "0d0a0d0a000d0a515549540a"
	for _, tc := range []struct{ name, src, dst, peer, want string }{
		{"IPv4", "10.0.0.1:4660", "10.0.0.2:80", "", signature + "2111000c" + "0a000001" + "0a000002" + "1234" + "0050"},
		{"IPv4 with an identity", "10.0.0.1:4660", "10.0.0.2:80", "spiffe://a", signature + "21110019" + "0a000001" + "0a000002" + "1234" + "0050" +
			"d0000a" + hex.EncodeToString([]byte("spiffe://a"))},
		{"IPv6 with an identity", "[fd00::1]:4660", "[fd00::2]:80", "spiffe://a", signature + "21210031" +
			"fd000000000000000000000000000001" + "fd000000000000000000000000000002" + "1234" + "0050" +
			"d0000a" + hex.EncodeToString([]byte("spiffe://a"))},
		{"two families", "10.0.0.1:4660", "[fd00::2]:80", "", signature + "21210024" +
			"00000000000000000000ffff0a000001" + "fd000000000000000000000000000002" + "1234" + "0050"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := hex.EncodeToString(proxyHeader(netip.MustParseAddrPort(tc.src), netip.MustParseAddrPort(tc.dst), tc.peer))
			if got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

func TestTunnelledDeliveries(t *testing.T) {
	tunnel := func(t *discovery.Tunnel) func(*discovery.Workload) {
		return func(w *discovery.Workload) { w.AppTunnel = t }
	}
	elsewhere := func(s *discovery.Service) {
		s.VIPs = []discovery.NetworkAddr{
			{Network: "other", Addr: netip.MustParseAddr("10.8.0.1")}, {Addr: netip.MustParseAddr("fd01::1")}, {Addr: netip.MustParseAddr("10.1.0.1")},
		}
	}
	store := storeOf(
		pod("proxy", "10.0.0.10", tunnel(&discovery.Tunnel{Proxy: true, Port: 15088}), serving("web", 80, 8080), serving("headless", 80, 80)),
		pod("samePort", "10.0.0.11", tunnel(&discovery.Tunnel{Proxy: true})),
		pod("loop", "10.0.0.12", tunnel(&discovery.Tunnel{Proxy: true, Port: 15006})),
		service("web", "", []uint16{80, 8080}, elsewhere), service("headless", "", []uint16{80, 80}),
	)
	for _, tc := range []struct{ name, self, authority, to, asked, refused string }{
		{"anything is taken", "proxy", "10.7.7.7:80", "10.0.0.10:15088", "10.7.7.7:80", ""},
		{"host name: a VIP of this network, IPv4", "proxy", "web.default.svc.cluster.local:80", "10.0.0.10:15088", "10.1.0.1:80", ""},
		{"host name without addresses", "proxy", "headless.default.svc.cluster.local:80", "", "", "has no address to name"},
		{"no port of its own", "samePort", "10.0.0.11:80", "10.0.0.11:80", "10.0.0.11:80", ""},
		{"asked for a port of ztunnel", "proxy", "10.7.7.7:15008", "", "", "ztunnel's own"},
		{"tunnel to a port of ztunnel", "loop", "10.7.7.7:80", "", "", "ztunnel's own"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := &router{store: store, redirected: true}
			self := store.WorkloadByUID("Kubernetes//Pod/default/" + tc.self)
			d, err := r.inbound(self, self.Addresses[0], tc.authority)
			if tc.refused != "" {
				var refused *rejection
				if !errors.As(err, &refused) || refused.status != statusUnavailable || !strings.Contains(err.Error(), tc.refused) {
					t.Errorf("got %v, want 503 with %q", err, tc.refused)
				}
				return
			}
			if err != nil || d.to.String() != tc.to || d.asked.String() != tc.asked || !d.header {
				t.Errorf("got %+v, %v, want %s asking for %s", d, err, tc.to, tc.asked)
			}
		})
	}
}

// acceptHeader answers "ok" to one connection after a PROXY header of that size and one byte of data, and returns both.
func acceptHeader(l net.Listener, size int) chan string {
	got := make(chan string, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			got <- err.Error()
			return
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		b := make([]byte, size+1)
		n, _ := io.ReadFull(conn, b)
		_, _ = io.WriteString(conn, "ok")
		got <- string(b[:n])
	}()
	return got
}

func TestApplicationTunnelIntroducesTheClient(t *testing.T) {
	for _, tc := range []struct {
		name, family, listen string
		loopback             bool
	}{
		{"IPv4 over loopback", "4", "127.0.0.1:15088", true},
		{"IPv6 over loopback", "6", "[::1]:15088", true},
		{"IPv4 from the client's address", "4", "", false},
		{"IPv6 from the client's address", "6", "", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, func(c *Config) { c.LocalhostAppTunnel = tc.loopback })
			w.republish(w.server, func(c *discovery.Workload) { c.AppTunnel = &discovery.Tunnel{Proxy: true, Port: 15088} })
			const peer = "spiffe://cluster.local/ns/default/sa/client"
			cert := peerTLS(w.ca.Issue(t, peer))
			listen := tc.listen
			if listen == "" {
				listen = netip.AddrPortFrom(w.server.Addr(tc.family), 15088).String()
			}
			l := w.server.Listen(t, "tcp", listen)
			defer l.Close()
			asked := netip.AddrPortFrom(w.legacy.Addr(tc.family).Next(), 443)
			conn := w.dial(w.legacy, netip.AddrPortFrom(w.server.Addr(tc.family), hbonePort))
			want := proxyHeader(addrPort(conn.LocalAddr()), asked, peer)
			got := acceptHeader(l, len(want))
			pool := hbone.NewPool(hbone.PoolConfig{})
			defer pool.CloseIdle()
			stream, _, err := pool.Connect(t.Context(), hbone.Key{}, func(context.Context) (net.Conn, error) { return conn, nil }, cert, hbone.ConnectRequest{Authority: asked.String()})
			if err != nil {
				t.Fatal(err)
			}
			defer stream.Close()
			if _, err := io.WriteString(stream, "x"); err != nil {
				t.Fatal(err)
			}
			if got := <-got; got != string(want)+"x" {
				t.Errorf("the application got %q, want %q", got, string(want)+"x")
			}
			answer := make([]byte, 2)
			if _, err := io.ReadFull(stream, answer); err != nil || string(answer) != "ok" {
				t.Errorf("got %q, %v, want ok", answer, err)
			}
		})
	}
}

func TestApplicationTunnelWithoutApplicationIs503(t *testing.T) {
	w := newWorld(t)
	w.proxy.LocalhostAppTunnel = true
	w.republish(w.server, func(c *discovery.Workload) { c.AppTunnel = &discovery.Tunnel{Proxy: true, Port: 15088} })
	_ = w.mustFail(w.client.Pod, netip.AddrPortFrom(w.server.Addr4, 80))
	w.wantLine(`direction="inbound"`, `verdict="refused-connect"`, "127.0.0.1:15088")
	testutil.Eventually(t, 20*time.Second, func() error {
		if n := w.proxy.metric("sluice_connection_verdicts_total", `verdict="refused-by-peer"`); n != 1 {
			return errors.New("the client was not told")
		}
		return nil
	})
}
