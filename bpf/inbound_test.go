// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

func TestInboundReachesTheProxy(t *testing.T) {
	w := newWorld(t)
	server, legacy := w.enrol(t, w.host.Pod(t, "server")), w.host.Pod(t, "legacy")
	eachFamily(t, func(t *testing.T, family string) {
		server.Echo(t, "app", netip.AddrPortFrom(server.Addr(family), 80).String())
		for port, role := range map[uint16]string{80: "inbound", 81: "inbound", 15001: "inbound", 15006: "inbound", 15008: "hbone"} {
			addr := netip.AddrPortFrom(server.Addr(family), port)
			wantAnswer(t, legacy.NS, addr, role+"@"+addr.String(), legacy.Addr(family))
		}
	})
}

func TestDeliveryKeepsTheClientsAddress(t *testing.T) {
	w := newWorld(t)
	server, legacy := w.enrol(t, w.host.Pod(t, "server")), w.host.Pod(t, "legacy")
	server.proxy.deliver.Store(true)
	eachFamily(t, func(t *testing.T, family string) {
		addr := netip.AddrPortFrom(server.Addr(family), 80)
		server.Echo(t, "app", addr.String())
		wire := sniff(t, w.host.NS, server.HostIf)
		wantAnswer(t, legacy.NS, addr, "app", legacy.Addr(family))
		for range 10 {
			wantTransfer(t, legacy.NS, addr, "app", 200_000)
		}
		if _, err := legacy.AskFrom(netip.AddrPortFrom(addr.Addr(), 81)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("closed port: got %v, want %v", err, unix.ECONNRESET)
		}
		wire.wantOnly(t, func(f captureFlow) error {
			if wire.clients[legacy.Addr(family)][f.Dport] || f.Src != newAddress(server.Addr(family)) {
				return nil
			}
			return errors.New("not of a connection that a client opened")
		})
	})
	server.wantVerdict(t, VerdictReply, 24)
	server.wantVerdict(t, VerdictLocalFlow, 24)
	if got := server.count(t, VerdictDropStray); got != 0 {
		t.Errorf("drop-stray: got %d, want 0", got)
	}
}

func TestSelfCallsStayInThePod(t *testing.T) {
	w := newWorld(t)
	pod := w.enrol(t, w.host.Pod(t, "pod"))
	eachFamily(t, func(t *testing.T, family string) {
		own := netip.AddrPortFrom(pod.Addr(family), 80)
		pod.Echo(t, "app", own.String())
		wantAnswer(t, pod.NS, own, "app", pod.Addr(family))
		loopback := netip.AddrPortFrom(netip.MustParseAddr(map[string]string{"4": "127.0.0.1", "6": "::1"}[family]), 80)
		pod.Echo(t, "loopback", loopback.String())
		wantAnswer(t, pod.NS, loopback, "loopback", loopback.Addr())
	})
	pod.wantVerdict(t, VerdictLocalFlow, 2)
	pod.wantVerdict(t, VerdictLoopback, 2)
}

func TestAppsMayListenOnTheProxysPorts(t *testing.T) {
	w := newWorld(t)
	pod := w.enrol(t, w.host.Pod(t, "pod"))
	pod.proxy.deliver.Store(true)
	legacy := w.host.Pod(t, "legacy")
	for _, port := range []uint16{15001, 15006, 15008, 15053, 15090} {
		pod.Echo(t, fmt.Sprint("app", port), fmt.Sprintf("[::]:%d", port))
		if port != HBONEPort {
			wantAnswer(t, legacy.NS, netip.AddrPortFrom(pod.Addr4, port), fmt.Sprint("app", port), legacy.Addr4)
		}
	}
}

func TestReversePathFilterDoesNotMatter(t *testing.T) {
	for _, mode := range []string{"1", "2"} {
		t.Run(mode, func(t *testing.T) {
			w := newWorld(t)
			server, legacy := w.enrol(t, w.host.Pod(t, "server")), w.host.Pod(t, "legacy")
			for _, dev := range []string{"all", "default", "lo", "eth0"} {
				server.Sysctl(t, "net.ipv4.conf."+dev+".rp_filter", mode)
			}
			server.proxy.deliver.Store(true)
			app, out := netip.AddrPortFrom(server.Addr4, 80), netip.AddrPortFrom(legacy.Addr4, 80)
			server.Echo(t, "app", app.String())
			wantAnswer(t, legacy.NS, app, "app", legacy.Addr4)
			wantAnswer(t, server.NS, out, "outbound@"+out.String(), server.Addr4)
		})
	}
}
