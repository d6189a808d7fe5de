// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
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

func TestBadAuthoritiesAreRefusedByStatus(t *testing.T) {
	w := newWorld(t)
	pool := hbone.NewPool(hbone.PoolConfig{})
	defer func() { _ = pool.Close(t.Context()) }()
	to := netip.AddrPortFrom(w.server.Addr4, hbonePort)
	config := peerTLS(w.ca.Issue(t, "spiffe://cluster.local/ns/default/sa/client"))
	dial := func(ctx context.Context) (net.Conn, error) { return w.legacy.Dial(ctx, "tcp", to.String()) }
	for _, tc := range []struct {
		authority string
		status    int
		want      string
	}{
		{"10.9.9.9:80", 400, "ip mismatch: 10.9.9.9 != " + w.server.Addr4.String()},
		{"127.0.0.1:80", 400, "ip mismatch: 127.0.0.1 != "},
		{w.server.Addr4.String(), 400, "bad authority"},
		{"nobody.default.svc.cluster.local:80", 503, "unknown service"},
		{netip.AddrPortFrom(w.server.Addr4, 15008).String(), 503, "connection refused"},
		{netip.AddrPortFrom(w.server.Addr4, 9).String(), 503, "connection refused"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		stream, _, err := pool.Connect(ctx, hbone.Key{Addr: to}, dial, config, hbone.ConnectRequest{Authority: tc.authority})
		cancel()
		if err == nil {
			_ = stream.Close()
		}
		var status *hbone.StatusError
		if !errors.As(err, &status) || status.Code != tc.status {
			t.Errorf("%s: got %v, want status %d", tc.authority, err, tc.status)
		}
		w.wantLine("connection complete", `direction="inbound"`, `dst.hbone_addr="`+tc.authority+`"`, tc.want)
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
