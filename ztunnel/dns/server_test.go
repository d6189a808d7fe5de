// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/testutil"
	"github.com/sluice-mesh/sluice/ztunnel/discovery"
	"github.com/sluice-mesh/sluice/ztunnel/telemetry"
)

var loopback = netip.MustParseAddrPort("127.0.0.1:0")

// fakePod is a pod without a namespace, whose control plane knows it once known is closed.
type fakePod struct {
	known chan struct{}
	left  *atomic.Int32 // descriptors of its share; nil has no limit
}

func (fakePod) DialUDP(_ context.Context, to netip.AddrPort) (*net.UDPConn, error) {
	return net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
}

func (fakePod) SendUDP(_ context.Context, _, to netip.AddrPort, data []byte) error {
	c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		return err
	}
	_, err = c.Write(data)
	return errors.Join(err, c.Close())
}

func (p fakePod) Workload(ctx context.Context) (*discovery.Workload, error) {
	select {
	case <-p.known:
		return fakeClient, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p fakePod) Reserve(n int) (release func(), err error) {
	if p.left == nil {
		return func() {}, nil
	}
	release = func() { p.left.Add(int32(n)) }
	if p.left.Add(int32(-n)) < 0 {
		release()
		return nil, errors.New("the pod's share is used up")
	}
	return release, nil
}

func (fakePod) Shed(*net.TCPListener, error) int { return 0 }

func (fakePod) Dial(context.Context, netip.AddrPort, netip.AddrPort) (net.Conn, error) {
	return nil, errors.New("no route")
}

// served is a server on loopback: datagrams and connections to it are what was captured.
type served struct {
	*Server
	udp *net.UDPConn
	tcp *net.TCPListener
}

func serve(t *testing.T, p fakePod) *served {
	t.Helper()
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_RECVORIGDSTADDR, 1) })
	}}
	udp, err := lc.ListenPacket(t.Context(), "udp4", loopback.String())
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(loopback))
	if err != nil {
		t.Fatal(err)
	}
	s := &served{udp: udp.(*net.UDPConn), tcp: tcp, Server: NewServer(Config{
		Resolver: testResolver(), Metrics: telemetry.NewMetrics("test"), Log: slog.New(slog.DiscardHandler),
	}, p, p)}
	s.Listen([]*net.UDPConn{s.udp}, []*net.TCPListener{s.tcp})
	t.Cleanup(func() { s.hangUp(); s.Stop() })
	return s
}

func (s *served) hangUp() { _, _ = s.udp.Close(), s.tcp.Close() }

// asker returns a socket that sends queries to the server and hears anybody.
func asker(t *testing.T) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(loopback))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	return c
}

func send(t *testing.T, s *served, c *net.UDPConn) {
	t.Helper()
	sendQuestion(t, s, c, "web.")
}

func sendQuestion(t *testing.T, s *served, c *net.UDPConn, name string) {
	t.Helper()
	raw, err := new(dns.Msg).SetQuestion(name, dns.TypeA).Pack()
	if err == nil {
		_, err = c.WriteTo(raw, s.udp.LocalAddr())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func receive(t *testing.T, c *net.UDPConn) *dns.Msg {
	t.Helper()
	buf := make([]byte, 4096)
	n, _, err := c.ReadFrom(buf)
	if err != nil {
		t.Fatal(err)
	}
	return unpack(t, buf[:n])
}

func TestTooManyQueriesAreRefused(t *testing.T) {
	p := fakePod{known: make(chan struct{})}
	s := serve(t, p)
	many, late := asker(t), asker(t)
	for range maxQueries {
		send(t, s, many)
	}
	for len(s.queries) < maxQueries && t.Context().Err() == nil {
		time.Sleep(time.Millisecond) // the channel's length cannot be waited for
	}
	send(t, s, late)
	if m := receive(t, late); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("one too many: got %v, want SERVFAIL", m)
	}
	close(p.known)
	for i := range maxQueries {
		if m := receive(t, many); m.Rcode != 0 || len(m.Answer) != 1 {
			t.Fatalf("answer %d: %v", i, m)
		}
	}
}

// A pod that has used up its share of descriptors has names of the mesh resolved, which takes none, and gets an answer to
// all else at once.
func TestQueriesAreOfThePodsShare(t *testing.T) {
	p := fakePod{known: make(chan struct{}), left: &atomic.Int32{}}
	close(p.known)
	s := serve(t, p)
	c := asker(t)
	send(t, s, c)
	if m := receive(t, c); m.Rcode != 0 || len(m.Answer) != 1 {
		t.Errorf("a name of the mesh: %v", m)
	}
	sendQuestion(t, s, c, "elsewhere.")
	if m := receive(t, c); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("another name: got %v, want SERVFAIL", m)
	}
	conn, err := net.Dial("tcp", s.tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(idleTimeout / 2))
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a connection: %v, want it closed", err)
	}
	page := httptest.NewRecorder()
	telemetry.StatsHandler(s.Metrics).ServeHTTP(page, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if want := `sluice_dns_refused_total{reason="limit"} 2`; !strings.Contains(page.Body.String(), want) {
		t.Errorf("no %s in\n%s", want, page.Body)
	}
	// What a query took is given back with its answer: here none comes, as a pod without a namespace asks itself.
	p.left.Store(fdsQuery)
	sendQuestion(t, s, c, "elsewhere.")
	receive(t, c)
	testutil.Eventually(t, 10*time.Second, func() error {
		if n := p.left.Load(); n != fdsQuery {
			return fmt.Errorf("%d descriptors are left, want %d", n, fdsQuery)
		}
		return nil
	})
}

func TestDrainWaitsForAnswersAndStopDoesNot(t *testing.T) {
	p := fakePod{known: make(chan struct{})}
	s := serve(t, p)
	c := asker(t)
	send(t, s, c)
	for len(s.queries) == 0 && t.Context().Err() == nil {
		time.Sleep(time.Millisecond) // the channel's length cannot be waited for
	}
	s.hangUp()
	drained := make(chan struct{})
	go func() { defer close(drained); s.Drain(t.Context()) }()
	select {
	case <-drained:
		t.Fatal("drained before the answer")
	case <-time.After(20 * time.Millisecond): // long enough for a Drain that does not wait
	}
	close(p.known)
	if m := receive(t, c); len(m.Answer) != 1 {
		t.Errorf("got %v", m)
	}
	<-drained

	stuck := serve(t, fakePod{known: make(chan struct{})})
	send(t, stuck, c)
	stuck.hangUp()
	stuck.Stop() // the test's time is up if this waits
}

func TestMalformedMessagesEndAConnection(t *testing.T) {
	known := make(chan struct{})
	close(known)
	s := serve(t, fakePod{known: known})
	for _, msg := range [][]byte{{}, {1}, make([]byte, 11)} {
		c, err := net.Dial("tcp4", s.tcp.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		if err := writeMessage(c, msg); err != nil {
			t.Fatal(err)
		}
		got, err := readMessage(c)
		if !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%x: got %x, %v, want the end", msg, got, err)
		}
		_ = c.Close()
	}
}
