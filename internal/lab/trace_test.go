// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"crypto/tls"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

var (
	left  = netip.MustParseAddrPort("10.0.0.1:40000")
	right = netip.MustParseAddrPort("10.0.0.2:15008")
)

// segments cuts a text into packets of n bytes, in reverse order, after a SYN.
func segments(src, dst netip.AddrPort, text string, n int) Trace {
	t := Trace{{Src: src, Dst: dst, Seq: 0xfffffff0, SYN: true}} // wraps around
	for at := 0; at < len(text); at += n {
		part := text[at:min(at+n, len(text))]
		t = append(t, Packet{Src: src, Dst: dst, Seq: 0xfffffff1 + uint32(at), ACK: true, Payload: []byte(part)})
	}
	for i, j := 1, len(t)-1; i < j; i, j = i+1, j-1 {
		t[i], t[j] = t[j], t[i]
	}
	return t
}

func TestCountFindsTextAcrossSegments(t *testing.T) {
	text := strings.Repeat("x", 20) + "MARKER" + strings.Repeat("y", 20) + "MARKER"
	for _, size := range []int{1, 3, 7, 100} {
		if got := segments(left, right, text, size).Count("MARKER"); got != 2 {
			t.Errorf("segments of %d bytes: got %d, want 2", size, got)
		}
	}
}

func TestClearIsWhatAvoidsThePort(t *testing.T) {
	other := netip.AddrPortFrom(right.Addr(), 8080)
	for _, tt := range []struct {
		name   string
		packet Packet
		want   int
	}{
		{"payload to the port", Packet{Src: left, Dst: right, Payload: []byte("x")}, 0},
		{"payload from the port", Packet{Src: right, Dst: left, Payload: []byte("x")}, 0},
		{"payload elsewhere", Packet{Src: left, Dst: other, Payload: []byte("x")}, 1},
		{"SYN elsewhere", Packet{Src: left, Dst: other, SYN: true}, 1},
		{"SYN to the port", Packet{Src: left, Dst: right, SYN: true}, 0},
		{"bare ACK elsewhere", Packet{Src: left, Dst: other, ACK: true}, 0},
	} {
		if got := len(Trace{tt.packet}.Clear(15008)); got != tt.want {
			t.Errorf("%s: got %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestTLSVersions(t *testing.T) {
	ca := testutil.NewCA(t)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		c2s, s2c := handshake(t, ca, version)
		trace := append(segments(left, right, c2s, 700), segments(right, left, s2c, 700)...)
		got, err := trace.TLSVersions(right.Port())
		if err != nil || len(got) != 1 || got[0] != version {
			t.Errorf("got %x, %v, want %x", got, err, version)
		}
	}
	if _, err := segments(left, right, "GET / HTTP/1.1\r\n\r\n", 700).TLSVersions(right.Port()); err == nil {
		t.Error("HTTP passes for TLS")
	}
}

// handshake records what both sides of a real handshake write.
func handshake(t *testing.T, ca *testutil.CA, version uint16) (client, server string) {
	t.Helper()
	a, b := net.Pipe()
	ra, rb := &recorder{Conn: a}, &recorder{Conn: b}
	cert := ca.Issue(t, "spiffe://cluster.local/ns/demo/sa/server")
	done := make(chan error, 1)
	go func() {
		done <- tls.Server(rb, &tls.Config{Certificates: []tls.Certificate{cert}, MaxVersion: version, SessionTicketsDisabled: true}).Handshake()
	}()
	if err := tls.Client(ra, &tls.Config{InsecureSkipVerify: true}).Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return ra.written.String(), rb.written.String()
}

type recorder struct {
	net.Conn
	written strings.Builder
}

func (r *recorder) Write(p []byte) (int, error) {
	r.written.Write(p)
	return r.Conn.Write(p)
}

func TestCaptureSeesBothDirections(t *testing.T) {
	testutil.RequireRoot(t)
	node := testutil.NewNode(t)
	client, server := node.Pod(t, "client"), node.Pod(t, "server")
	capture, err := new(Lab).StartCapture(node.Name, client.HostIf)
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range []string{"4", "6"} {
		echo := server.Echo(t, "server", netip.AddrPortFrom(server.Addr(family), 0).String())
		if _, err := client.AskFrom(echo.Addr); err != nil {
			t.Fatal(err)
		}
	}
	trace, err := capture.Stop()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range []string{"4", "6"} {
		// The ping and its echo.
		if got := trace.Between(client.Addr(family), server.Addr(family)).Count("ping"); got != 2 {
			t.Errorf("IPv%s: ping seen %d times, want 2", family, got)
		}
	}
	if got := trace.Between(client.Addr4).PayloadBytes(); got != 0 {
		t.Errorf("payload between one address and itself: got %d bytes", got)
	}
}
