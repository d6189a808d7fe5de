// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// testCA issues the certificates of both ends.
type testCA struct{ *testutil.CA }

func newCA(tb testing.TB) testCA { tb.Helper(); return testCA{testutil.NewCA(tb)} }

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func (ca testCA) server(tb testing.TB) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{ca.Issue(tb, "spiffe://td/ns/demo/sa/server")},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.Pool(),
		CurvePreferences: []tls.CurveID{tls.X25519},
	}
}

// client verifies the chain by hand, as mesh peers do: there is no host name.
func (ca testCA) client(tb testing.TB) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{ca.Issue(tb, "spiffe://td/ns/demo/sa/client")},
		InsecureSkipVerify: true,
		CurvePreferences:   []tls.CurveID{tls.X25519},
		VerifyConnection: func(cs tls.ConnectionState) error {
			_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: ca.Pool()})
			return err
		},
	}
}

// testServer is a Server on a loopback listener.
type testServer struct {
	*Server
	ln     net.Listener
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu   sync.Mutex
	errs []error // what ServeConn returned
}

func (ts *testServer) addr() netip.AddrPort { return netip.MustParseAddrPort(ts.ln.Addr().String()) }

func (ts *testServer) accept() {
	defer ts.wg.Done()
	for {
		conn, err := ts.ln.Accept()
		if err != nil {
			return
		}
		ts.wg.Add(1)
		go func() {
			defer ts.wg.Done()
			err := ts.ServeConn(ts.ctx, conn)
			ts.mu.Lock()
			ts.errs = append(ts.errs, err)
			ts.mu.Unlock()
		}()
	}
}

func (ts *testServer) serveErrs() []error {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	return append([]error(nil), ts.errs...)
}

// waitServeErr waits for the first ServeConn to return.
func (ts *testServer) waitServeErr(tb testing.TB) error {
	tb.Helper()
	eventually(tb, func() bool { return len(ts.serveErrs()) > 0 })
	return ts.serveErrs()[0]
}

func startServer(tb testing.TB, srv *Server) *testServer {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(tb, err)
	ts := &testServer{Server: srv, ln: ln}
	ts.ctx, ts.cancel = context.WithCancel(context.Background())
	ts.wg.Add(1)
	go ts.accept()
	tb.Cleanup(func() {
		_ = ln.Close()
		ts.cancel()
		ts.wg.Wait()
	})
	return ts
}

// env is a server, a pool and the key that leads from one to the other.
type env struct {
	ca        testCA
	srv       *testServer
	pool      *Pool
	key       Key
	clientTLS *tls.Config
	dials     int
	dialMu    sync.Mutex
}

type option func(*Server, *PoolConfig)

func newEnv(tb testing.TB, handler func(context.Context, *ServerStream), opts ...option) *env {
	tb.Helper()
	checkGoroutines(tb)
	ca := newCA(tb)
	srv := &Server{TLS: ca.server(tb), Handler: handler}
	cfg := PoolConfig{}
	for _, o := range opts {
		o(srv, &cfg)
	}
	e := &env{ca: ca, clientTLS: ca.client(tb), pool: NewPool(cfg)}
	e.srv = startServer(tb, srv)
	e.key = Key{Source: "client", Expected: "server", Addr: e.srv.addr()}
	tb.Cleanup(func() { closePool(tb, e.pool) })
	return e
}

func closePool(tb testing.TB, p *Pool) {
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	_ = p.Close(ctx)
}

func (e *env) dial(ctx context.Context) (net.Conn, error) {
	e.dialMu.Lock()
	e.dials++
	e.dialMu.Unlock()
	return new(net.Dialer).DialContext(ctx, "tcp", e.key.Addr.String())
}

func (e *env) dialCount() int {
	e.dialMu.Lock()
	defer e.dialMu.Unlock()
	return e.dials
}

func (e *env) connect(ctx context.Context, headers ...Header) (*Stream, *ConnectResponse, error) {
	return e.pool.Connect(ctx, e.key, e.dial, e.clientTLS, ConnectRequest{Authority: "10.0.0.1:80", Headers: headers})
}

func (e *env) mustConnect(tb testing.TB) *Stream {
	tb.Helper()
	s, _, err := e.connect(tb.Context())
	must(tb, err)
	return s
}

// echo accepts and sends back what it gets.
func echo(_ context.Context, r *ServerStream) {
	s, err := r.Accept(nil)
	if err != nil {
		return
	}
	_, _ = s.WriteTo(writerOnly{s})
	_ = s.CloseWrite()
}

// writerOnly hides ReadFrom.
type writerOnly struct{ io.Writer }

func eventually(tb testing.TB, ok func() bool) {
	tb.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			tb.Fatalf("condition not met in 20 s\n%s", stacks())
		}
		time.Sleep(2 * time.Millisecond) // between two looks
	}
}

func stacks() string {
	buf := make([]byte, 1<<20)
	return string(buf[:runtime.Stack(buf, true)])
}

var checked sync.Map // names of tests that have a check

// checkGoroutines makes the test fail if goroutines of this package are left when it ends.
func checkGoroutines(tb testing.TB) {
	if _, twice := checked.LoadOrStore(tb.Name(), true); twice {
		return
	}
	tb.Cleanup(func() { checked.Delete(tb.Name()) })
	tb.Cleanup(func() {
		tb.Helper()
		deadline := time.Now().Add(10 * time.Second)
		for {
			left := ourGoroutines()
			if len(left) == 0 {
				return
			}
			if time.Now().After(deadline) {
				tb.Errorf("%d goroutines left:\n%s", len(left), strings.Join(left, "\n\n"))
				return
			}
			time.Sleep(5 * time.Millisecond) // between two looks
		}
	})
}

func ourGoroutines() []string {
	var left []string
	for _, g := range strings.Split(stacks(), "\n\n") {
		if strings.Contains(g, "/hbone.") && !strings.Contains(g, "hbone.ourGoroutines") &&
			!strings.Contains(g, "testing.tRunner") && !strings.Contains(g, "testing.(*B)") {
			left = append(left, g)
		}
	}
	return left
}

// tcpPair returns both ends of a loopback TCP connection.
func tcpPair(tb testing.TB) (a, b *net.TCPConn) {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(tb, err)
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	must(tb, err)
	d, err := ln.Accept()
	must(tb, err)
	tb.Cleanup(func() { _ = c.Close(); _ = d.Close() })
	return c.(*net.TCPConn), d.(*net.TCPConn)
}

func wantStreamError(tb testing.TB, err error, code ErrCode, remote bool) {
	tb.Helper()
	var se *StreamError
	if !errors.As(err, &se) || se.Code != code || se.Remote != remote {
		tb.Fatalf("got error %v, want stream error %s, remote %v", err, code, remote)
	}
}

func isReset(err error) bool { return errors.Is(err, syscall.ECONNRESET) }

func withCancel(tb testing.TB) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	tb.Cleanup(cancel)
	return ctx, cancel
}

// stallable is echo, but accepts and reads nothing when the header mode says "stall".
func stallable(ctx context.Context, r *ServerStream) {
	if r.Header("mode") != "stall" {
		echo(ctx, r)
		return
	}
	if _, err := r.Accept(nil); err == nil {
		<-ctx.Done()
	}
}
