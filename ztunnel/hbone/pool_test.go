// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

func TestWaitersShareOneDial(t *testing.T) {
	e := newEnv(t, echo)
	gate := make(chan struct{})
	dial := func(ctx context.Context) (net.Conn, error) {
		<-gate
		return e.dial(ctx)
	}
	const callers = 30
	var wg sync.WaitGroup
	for range callers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			s, _, err := e.pool.Connect(t.Context(), e.key, dial, e.clientTLS, ConnectRequest{Authority: "a:1"})
			if err != nil {
				t.Error(err)
				return
			}
			_ = s.Close()
		}()
	}
	eventually(t, func() bool { return e.pool.waiters(e.key) == callers })
	close(gate)
	wg.Wait()
	if got := e.dialCount(); got != 1 {
		t.Errorf("dialled %d times for %d callers, want 1", got, callers)
	}
}

func (p *Pool) waiters(key Key) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if h := p.hosts[key]; h != nil && h.dial != nil {
		return h.dial.waiters
	}
	return 0
}

func TestCallerThatGivesUpDoesNotBreakTheDial(t *testing.T) {
	e := newEnv(t, echo)
	gate := make(chan struct{})
	dial := func(ctx context.Context) (net.Conn, error) {
		select {
		case <-gate:
			return e.dial(ctx)
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	connect := func(ctx context.Context) chan error {
		ch := make(chan error, 1)
		go func() {
			s, _, err := e.pool.Connect(ctx, e.key, dial, e.clientTLS, ConnectRequest{Authority: "a:1"})
			if err == nil {
				_ = s.Close()
			}
			ch <- err
		}()
		return ch
	}
	impatient, cancel := withCancel(t)
	first := connect(impatient) // it is this caller's dial
	eventually(t, func() bool { return e.pool.waiters(e.key) == 1 })
	second := connect(t.Context())
	eventually(t, func() bool { return e.pool.waiters(e.key) == 2 })
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("first: got %v, want canceled", err)
	}
	close(gate)
	must(t, <-second)
}

func TestDialIsCancelledWhenNobodyWaits(t *testing.T) {
	e := newEnv(t, echo)
	cancelled := make(chan struct{})
	dial := func(ctx context.Context) (net.Conn, error) {
		<-ctx.Done()
		close(cancelled)
		return nil, ctx.Err()
	}
	ctx, cancel := withCancel(t)
	done := make(chan error, 1)
	go func() {
		_, _, err := e.pool.Connect(ctx, e.key, dial, e.clientTLS, ConnectRequest{Authority: "a:1"})
		done <- err
	}()
	eventually(t, func() bool { return e.pool.waiters(e.key) == 1 })
	cancel()
	<-cancelled
	<-done
	_ = e.mustConnect(t).Close() // and the next caller dials anew
}

func TestDialErrors(t *testing.T) {
	e := newEnv(t, echo, func(_ *Server, c *PoolConfig) { c.DialTimeout = 500 * time.Millisecond })
	patient := NewPool(PoolConfig{}) // a handshake takes its time on a busy machine
	defer closePool(t, patient)
	connectIn := func(p *Pool, dial DialFunc, cfg *tls.Config) error {
		_, _, err := p.Connect(t.Context(), e.key, dial, cfg, ConnectRequest{Authority: "a:1"})
		return err
	}
	connect := func(dial DialFunc, cfg *tls.Config) error { return connectIn(e.pool, dial, cfg) }
	refused := func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", "127.0.0.1:1")
	}
	if err := connect(refused, e.clientTLS); !errors.Is(err, ErrDial) || !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("refused: got %v, want ErrDial and ECONNREFUSED", err)
	}
	stalled := func(ctx context.Context) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }
	if err := connect(stalled, e.clientTLS); !errors.Is(err, ErrDial) || !isTimeout(err) {
		t.Errorf("stalled dial: got %v, want ErrDial, a timeout", err)
	}
	silent := func(context.Context) (net.Conn, error) { a, _ := tcpPair(t); return a, nil }
	if err := connect(silent, e.clientTLS); !errors.Is(err, ErrTLS) || !isTimeout(err) {
		t.Errorf("stalled handshake: got %v, want ErrTLS, a timeout", err)
	}
	stranger := e.clientTLS.Clone()
	stranger.InsecureSkipVerify, stranger.ServerName = false, "example"
	var invalid *tls.CertificateVerificationError
	if err := connectIn(patient, e.dial, stranger); !errors.Is(err, ErrTLS) || !errors.As(err, &invalid) {
		t.Errorf("unknown authority: got %v, want ErrTLS and the verification error", err)
	}
	if n := len(e.pool.hosts) + len(patient.hosts); n != 0 {
		t.Errorf("%d keys left after errors, want 0", n)
	}
}

func TestConnectionIsRetiredWhenFull(t *testing.T) {
	e := newEnv(t, stallable, func(_ *Server, c *PoolConfig) { c.MaxStreams = 3 })
	open := func() *Stream { return e.mustConnect(t) }
	streams := []*Stream{open(), open(), open()}
	first := streams[0].c
	for i, s := range streams {
		if s.c != first {
			t.Fatalf("stream %d is on another connection, want the first three on one", i)
		}
	}
	// Full once, it is retired for good: neither the fourth stream nor any after the others ended goes there.
	fourth := open()
	if fourth.c == first {
		t.Fatal("the fourth stream is on the full connection")
	}
	_ = streams[0].Close()
	_ = streams[1].Close()
	if open().c == first {
		t.Fatal("a retired connection got a new stream")
	}
	if got := e.dialCount(); got != 2 {
		t.Errorf("dialled %d times, want 2", got)
	}
	// It closes with its last stream.
	_ = streams[2].Close()
	<-first.done
	if err := e.srv.waitServeErr(t); err != nil {
		t.Errorf("ServeConn: got %v, want nil", err)
	}
}

func TestPeersStreamLimit(t *testing.T) {
	e := newEnv(t, stallable, func(s *Server, _ *PoolConfig) { s.MaxConcurrentStreams = 2 })
	for range 6 {
		e.mustConnect(t)
	}
	// Until SETTINGS arrive the client assumes 100 and may be refused; then it goes elsewhere.
	if got := e.dialCount(); got < 3 || got > 6 {
		t.Errorf("dialled %d times for 6 streams at 2 each, want 3 to 6", got)
	}
	if got := e.pool.Stats().Streams; got != 6 {
		t.Errorf("streams: got %d, want 6", got)
	}
}

func TestLimitOfOneMeansNoReuse(t *testing.T) {
	e := newEnv(t, echo, func(_ *Server, c *PoolConfig) { c.MaxStreams = 1 })
	for i := range 3 {
		_ = e.mustConnect(t).Close()
		if got := e.dialCount(); got != i+1 {
			t.Fatalf("dialled %d times, want %d", got, i+1)
		}
	}
}

func TestKeysDoNotShare(t *testing.T) {
	e := newEnv(t, echo)
	a, key := e.mustConnect(t), e.key
	if b := e.mustConnect(t); a.c != b.c {
		t.Error("the same key has two connections")
	}
	for name, change := range map[string]func(*Key){
		"source identity":     func(k *Key) { k.Source = "another" },
		"expected identities": func(k *Key) { k.Expected = "server another" },
		"source address":      func(k *Key) { k.SourceIP = netip.MustParseAddr("127.0.0.9") },
		"address":             func(k *Key) { k.Addr = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), k.Addr.Port()) },
	} {
		e.key = key
		change(&e.key)
		before := e.dialCount()
		// The address may lead nowhere: that it was dialled at all is what counts.
		if b, _, err := e.connect(t.Context()); err == nil && a.c == b.c || e.dialCount() == before {
			t.Errorf("two connections that differ in %s share one", name)
		}
	}
}

func TestIdleConnectionIsReleased(t *testing.T) {
	e := newEnv(t, echo, func(_ *Server, c *PoolConfig) { c.IdleTimeout = 30 * time.Millisecond })
	s := e.mustConnect(t)
	time.Sleep(100 * time.Millisecond) // a connection with a stream is not idle
	if got := e.pool.Stats().Conns; got != 1 {
		t.Fatalf("connections: got %d, want 1", got)
	}
	_ = s.Close()
	<-s.c.done
	must(t, e.srv.waitServeErr(t))
	if n := len(e.pool.hosts); n != 0 {
		t.Errorf("%d keys left, want 0", n)
	}
}

func TestCloseIdleLeavesBusyConnections(t *testing.T) {
	e := newEnv(t, echo)
	s := e.mustConnect(t)
	e.pool.CloseIdle()
	if e.mustConnect(t).c != s.c {
		t.Fatal("busy connection was closed")
	}
	e2 := newEnv(t, echo)
	idle := e2.mustConnect(t)
	_ = idle.Close()
	e2.pool.CloseIdle()
	<-idle.c.done
}

func TestBrokenConnectionIsSkipped(t *testing.T) {
	e := newEnv(t, echo)
	s := e.mustConnect(t)
	e.srv.cancel()
	<-s.c.done
	next := startServer(t, &Server{TLS: e.srv.TLS, Handler: echo})
	dial := func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", next.addr().String())
	}
	must(t, roundTrip(t.Context(), e, dial))
}

func TestRefusedStreamIsTriedElsewhere(t *testing.T) {
	rs := newRawServer(t)
	res := rs.connectAsync(t.Context())
	p := rs.accept()
	must(t, p.WriteRSTStream(p.request(), http2.ErrCodeRefusedStream))
	q := rs.accept()
	q.headers(q.request(), false, ":status", "200")
	r := <-res
	must(t, r.err)
	if got := rs.dialCount(); got != 2 {
		t.Errorf("dialled %d times, want 2", got)
	}
}

func TestStreamAboveGoAwayIsTriedElsewhere(t *testing.T) {
	rs := newRawServer(t)
	res := rs.connectAsync(t.Context())
	p := rs.accept()
	p.request()
	must(t, p.WriteGoAway(0, http2.ErrCodeNo, nil))
	q := rs.accept()
	q.headers(q.request(), false, ":status", "200")
	r := <-res
	must(t, r.err)
}

func TestEndlessRefusalEnds(t *testing.T) {
	rs := newRawServer(t)
	res := rs.connectAsync(t.Context())
	for range maxAttempts {
		p := rs.accept()
		must(t, p.WriteRSTStream(p.request(), http2.ErrCodeRefusedStream))
	}
	wantStreamError(t, (<-res).err, CodeRefusedStream, true)
}

func TestPoolCloseWaitsForStreams(t *testing.T) {
	e := newEnv(t, echo)
	s := e.mustConnect(t)
	closed := make(chan error, 1)
	go func() { closed <- e.pool.Close(t.Context()) }()
	eventually(t, func() bool {
		s, _, err := e.connect(t.Context())
		if err == nil {
			_ = s.Close()
		}
		return errors.Is(err, ErrPoolClosed)
	})
	_, err := s.Write([]byte("still open"))
	must(t, err)
	must(t, s.CloseWrite())
	got, err := io.ReadAll(s)
	if err != nil || string(got) != "still open" {
		t.Fatalf("got %q, %v", got, err)
	}
	must(t, <-closed)
	must(t, e.srv.waitServeErr(t))
}

func TestPoolCloseCutsWhatIsLeft(t *testing.T) {
	e := newEnv(t, stallable)
	s := e.mustConnect(t)
	ctx, cancel := withCancel(t)
	cancel()
	if err := e.pool.Close(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context canceled", err)
	}
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, ErrPoolClosed) {
		t.Errorf("read: got %v, want ErrPoolClosed", err)
	}
}

// TestGracefulShutdownLosesNothing is the upgrade of a server under load: two servers behind one address, the first told
// to go while requests keep coming. Every request is answered.
func TestGracefulShutdownLosesNothing(t *testing.T) {
	e := newEnv(t, echo)
	next := startServer(t, &Server{TLS: e.srv.TLS, Handler: echo})
	var target atomic.Pointer[testServer]
	target.Store(e.srv)
	dial := func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", target.Load().addr().String())
	}
	var done atomic.Bool
	var served atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for !done.Load() {
				if err := roundTrip(t.Context(), e, dial); err != nil {
					t.Errorf("request lost: %v", err)
					return
				}
				served.Add(1)
			}
		}()
	}
	eventually(t, func() bool { return served.Load() > 200 })
	// The address still leads to the old server for a moment after its shutdown began: it must send clients on.
	shut := make(chan error, 1)
	go func() { shut <- e.srv.Shutdown(t.Context()) }()
	target.Store(next)
	must(t, <-shut)
	after := served.Load()
	eventually(t, func() bool { return served.Load() > after+200 })
	done.Store(true)
	wg.Wait()
	for _, err := range e.srv.serveErrs() {
		if err != nil && !errors.Is(err, ErrServerClosed) {
			t.Errorf("ServeConn: %v", err)
		}
	}
}

func roundTrip(ctx context.Context, e *env, dial DialFunc) error {
	s, _, err := e.pool.Connect(ctx, e.key, dial, e.clientTLS, ConnectRequest{Authority: "a:1"})
	if err != nil {
		return err
	}
	defer s.Close()
	if _, err := s.Write([]byte("ping")); err != nil {
		return err
	}
	if err := s.CloseWrite(); err != nil {
		return err
	}
	got, err := io.ReadAll(s)
	if err == nil && string(got) != "ping" {
		err = errors.New("wrong answer " + string(got))
	}
	return err
}
