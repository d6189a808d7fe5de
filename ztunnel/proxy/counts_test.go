// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// TestEachConnectionIsCountedOnce: both reporters count bytes from the initiator's side, and log them from the pod's.
func TestEachConnectionIsCountedOnce(t *testing.T) {
	w := newWorld(t)
	const request, answer = 1000, 70000
	at := netip.AddrPortFrom(w.server.Addr4, 8080)
	ln := w.server.Listen(t, "tcp", at.String())
	go answerOnce(ln, request, answer)
	conn := w.dial(w.client.Pod, at)
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Write(make([]byte, request)); err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, conn); n != answer || err != nil {
		t.Fatalf("answer: got %d bytes, %v, want %d", n, err, answer)
	}
	_ = conn.Close()

	w.wantLine("connection complete", `direction="outbound"`, fmt.Sprintf("bytes_sent=%d bytes_recv=%d ", request, answer))
	w.wantLine("connection complete", `direction="inbound"`, fmt.Sprintf("bytes_sent=%d bytes_recv=%d ", answer, request))
	for _, reporter := range []string{`reporter="source"`, `reporter="destination"`} {
		for name, want := range map[string]float64{
			"istio_tcp_connections_opened_total": 1, "istio_tcp_connections_closed_total": 1, "istio_tcp_connections_failed_total": 0,
			"istio_tcp_received_bytes_total": request, "istio_tcp_sent_bytes_total": answer, "istio_tcp_sockets_open": 0,
		} {
			testutil.Eventually(t, 20*time.Second, func() error {
				if got := w.proxy.metric(name, reporter); got != want {
					return fmt.Errorf("%s{%s}: got %v, want %v", name, reporter, got, want)
				}
				return nil
			})
		}
	}
}

// answerOnce reads a request of a length, answers with so many bytes and hangs up.
func answerOnce(ln net.Listener, request, answer int) {
	conn, err := ln.Accept()
	if err != nil {
		return
	}
	defer conn.Close()
	if _, err := io.ReadFull(conn, make([]byte, request)); err == nil {
		_, _ = conn.Write(make([]byte, answer))
	}
}

// TestTunnelPortThatANetworkPolicyBlocks takes the 10 s of a connect.
func TestTunnelPortThatANetworkPolicyBlocks(t *testing.T) {
	w := newWorld(t)
	w.host.Run(t, "nft", "add table inet t; add chain inet t f { type filter hook forward priority 0; policy accept; }; "+
		"add rule inet t f tcp dport 15008 drop")
	echo := w.server.Echo(t, "server", netip.AddrPortFrom(w.server.Addr4, 8080).String())
	conn := w.dial(w.client.Pod, echo.Addr)
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
	w.wantLine("connection complete", `direction="outbound"`, `verdict="refused-connect"`, "a network policy may block port 15008")
	if n := w.proxy.metric("istio_tcp_connections_failed_total", `reporter="source"`, `response_flags="NETWORK_POLICY"`); n != 1 {
		t.Errorf("failed with NETWORK_POLICY: got %v, want 1", n)
	}
}
