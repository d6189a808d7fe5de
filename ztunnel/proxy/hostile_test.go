// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/internal/testutil"
	"github.com/sluice-mesh/sluice/ztunnel/hbone"
)

// peerTLS is a client that does not check the server and shows certs.
func peerTLS(certs ...tls.Certificate) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, InsecureSkipVerify: true,
		VerifyConnection: func(tls.ConnectionState) error { return nil }, Certificates: certs,
	}
}

func TestHandshakesOfStrangersAreRefusedByName(t *testing.T) {
	w := newWorld(t)
	to := netip.AddrPortFrom(w.server.Addr4, hbonePort)
	const good = "spiffe://cluster.local/ns/default/sa/client"
	other := testutil.NewCA(t)
	for _, tc := range []struct {
		name   string
		config *tls.Config
		want   string
	}{
		{"no certificate", peerTLS(), "peer presented no certificate"},
		{"another trust domain", peerTLS(w.ca.Issue(t, "spiffe://elsewhere/ns/default/sa/client")), `trust domain mismatch: peer is spiffe://elsewhere/ns/default/sa/client, want trust domain \"cluster.local\"`},
		{"expired", peerTLS(w.ca.Issue(t, good, testutil.Expired)), "certificate of " + good + " expired at "},
		{"another authority", peerTLS(other.Issue(t, good)), "certificate of " + good + " is not trusted"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			conn := tls.Client(w.dial(w.legacy, to), tc.config)
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
			// In TLS 1.3 a client learns of the refusal only when it reads.
			if _, err := conn.Read(make([]byte, 1)); err == nil {
				t.Error("the server talks to a stranger")
			}
			w.wantLine("connection failed", `direction="inbound"`, `verdict="refused-tls"`, tc.want, "src.addr="+w.legacy.Addr4.String())
		})
	}
}

func TestPeerThatSpeaksNoTLSIsRefusedByName(t *testing.T) {
	w := newWorld(t)
	conn := w.dial(w.legacy, netip.AddrPortFrom(w.server.Addr4, hbonePort))
	_, _ = conn.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		// A TLS alert is an answer too; what counts is that nothing else follows.
		t.Log("the server sent an alert")
	}
	w.wantLine("connection failed", `verdict="refused-tls"`)
}

// connectAs asks a pod's HBONE server for authority, with a valid certificate of the mesh, and returns how that ends.
func (w *world) connectAs(spiffe string, to netip.AddrPort, headers ...hbone.Header) func(authority string) error {
	pool := hbone.NewPool(hbone.PoolConfig{})
	w.t.Cleanup(func() { _ = pool.Close(context.Background()) })
	config := peerTLS(w.ca.Issue(w.t, spiffe))
	dial := func(ctx context.Context) (net.Conn, error) { return w.legacy.Dial(ctx, "tcp", to.String()) }
	return func(authority string) error {
		ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Second)
		defer cancel()
		request := hbone.ConnectRequest{Authority: authority, Headers: headers}
		stream, _, err := pool.Connect(ctx, hbone.Key{Addr: to}, dial, config, request)
		if err == nil {
			_ = stream.Close()
		}
		return err
	}
}

const clientSPIFFE = "spiffe://cluster.local/ns/default/sa/client"

func wantStatus(tb testing.TB, authority string, err error, want int) {
	tb.Helper()
	var status *hbone.StatusError
	if !errors.As(err, &status) || status.Code != want {
		tb.Errorf("%s: got %v, want status %d", authority, err, want)
	}
}

// TestBadAuthoritiesAreRefusedByStatus: the certificate is good, and so is the connection; what is asked for is not.
func TestBadAuthoritiesAreRefusedByStatus(t *testing.T) {
	w := newWorld(t)
	connect := w.connectAs(clientSPIFFE, netip.AddrPortFrom(w.server.Addr4, hbonePort))
	self := w.server.Addr4.String()
	for _, tc := range []struct {
		authority string
		status    int
		want      string
	}{
		{"10.9.9.9:80", 400, "ip mismatch: 10.9.9.9 != " + self},
		{"127.0.0.1:80", 400, "ip mismatch: 127.0.0.1 != "},
		{"[::1]:80", 400, "ip mismatch: ::1 != "},
		{"0.0.0.0:80", 400, "ip mismatch: 0.0.0.0 != "},
		{"169.254.169.254:80", 400, "ip mismatch: 169.254.169.254 != "},
		{netip.AddrPortFrom(w.client.Addr4, 80).String(), 400, "ip mismatch: " + w.client.Addr4.String() + " != " + self},
		{"[::ffff:" + w.client.Addr4.String() + "]:80", 400, "ip mismatch: " + w.client.Addr4.String() + " != " + self},
		{netip.AddrPortFrom(w.server.Addr6, 80).String(), 400, "ip mismatch: " + w.server.Addr6.String() + " != " + self},
		{netip.AddrPortFrom(w.legacy.Addr4, 80).String(), 400, "ip mismatch: " + w.legacy.Addr4.String() + " != " + self},
		{self, 400, "bad authority"},
		{self + ":0", 400, "is not a number from 1 to 65535"},
		{self + ":65536", 400, "is not a number from 1 to 65535"},
		{self + ":+80", 400, "is not a number from 1 to 65535"},
		{"[" + self + "]:80", 400, "no IPv6 address in brackets"},
		{"user@" + self + ":80", 400, "bad authority"},
		{self + ":80/path", 400, "bad authority"},
		{"10.9.9.9:80," + self + ":80", 400, "bad authority"},
		{"167772161:80", 400, "host name ends in a number"},
		{"nobody.default.svc.cluster.local:80", 503, "unknown service"},
		{netip.AddrPortFrom(w.server.Addr4, 15008).String(), 503, "connection refused"},
		{netip.AddrPortFrom(w.server.Addr4, 9).String(), 503, "connection refused"},
	} {
		wantStatus(t, tc.authority, connect(tc.authority), tc.status)
		w.wantLine("connection complete", `direction="inbound"`, `dst.hbone_addr="`+tc.authority+`"`, tc.want)
	}
}

// TestMeshPeersCannotReachZtunnelsOwnPorts: where ztunnel's sockets lie in the pod itself, a request must not lead to them.
func TestMeshPeersCannotReachZtunnelsOwnPorts(t *testing.T) {
	w := newForeignWorld(t)
	connect := w.connectAs(clientSPIFFE, netip.AddrPortFrom(w.server.Addr4, hbonePort))
	for _, port := range []uint16{15001, 15006, 15008} {
		authority := netip.AddrPortFrom(w.server.Addr4, port).String()
		wantStatus(t, authority, connect(authority), statusUnavailable)
		w.wantLine(`dst.hbone_addr="`+authority+`"`, `verdict="refused-reserved-port"`)
	}
}

// TestWhatPeersSayOfThemselvesIsNoProof: baggage and forwarded decide nothing, and cannot break a line of the log.
func TestWhatPeersSayOfThemselvesIsNoProof(t *testing.T) {
	w := newWorld(t)
	echo := w.server.Echo(t, "server", netip.AddrPortFrom(w.server.Addr4, 0).String())
	lie := "k8s.namespace.name=default,k8s.deployment.name=\"forged\" verdict=\x7f,service.name=" + strings.Repeat("x", 9000)
	connect := w.connectAs(clientSPIFFE, netip.AddrPortFrom(w.server.Addr4, hbonePort),
		hbone.Header{Name: networkHeader, Value: "elsewhere"}, hbone.Header{Name: "baggage", Value: lie},
		hbone.Header{Name: "forwarded", Value: "for=unknown;host=nobody.example;host=\"" + strings.Repeat(";", 1000)})
	if err := connect(echo.Addr.String()); err != nil {
		t.Errorf("got %v", err)
	}
	line := w.wantLine("connection complete", `direction="inbound"`, `src.identity="`+clientSPIFFE+`"`)
	if len(line) > 4<<10 || strings.Count(line, "verdict=") != 2 || !strings.Contains(line, `forged\"`) {
		t.Errorf("got the line %q, want it short and the peer's words quoted", line)
	}
}

// istio#52260, #52858, #49905: no port of the pod is ztunnel's.
func TestAppsMayListenOnTheReferencesPorts(t *testing.T) {
	w := newWorld(t)
	for _, family := range []string{"4", "6"} {
		for _, port := range []uint16{15001, 15006, 15053} {
			echo := w.server.Echo(t, "server", netip.AddrPortFrom(w.server.Addr(family), port).String())
			for _, from := range []*testutil.Pod{w.client.Pod, w.legacy} {
				answer, err := from.AskFrom(echo.Addr)
				if err != nil || answer.Name != "server" || answer.From.Addr() != from.Addr(family) {
					t.Errorf("%s from %s: got %+v, %v", echo.Addr, from.Name, answer, err)
				}
			}
		}
		// From outside this port is HBONE's; through the mesh it is the application's.
		echo := w.server.Echo(t, "server", netip.AddrPortFrom(w.server.Addr(family), 15008).String())
		if answer, err := w.client.AskFrom(echo.Addr); err != nil || answer.Name != "server" {
			t.Errorf("%s through the mesh: got %+v, %v", echo.Addr, answer, err)
		}
	}
}
