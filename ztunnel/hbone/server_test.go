// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

func TestStalledHandshakeIsCutOff(t *testing.T) {
	e := newEnv(t, echo, func(s *Server, _ *PoolConfig) { s.HandshakeTimeout = 50 * time.Millisecond })
	conn, err := e.dial(t.Context())
	must(t, err)
	defer conn.Close()
	err = e.srv.waitServeErr(t)
	if !errors.Is(err, ErrTLS) || !isTimeout(err) || !strings.Contains(err.Error(), "no handshake in time") {
		t.Errorf("got %v, want ErrTLS, a timeout", err)
	}
}

func TestHandshakeErrors(t *testing.T) {
	tests := []struct {
		name string
		edit func(*tls.Config)
		want string
	}{
		{"no certificate", func(c *tls.Config) { c.Certificates = nil }, "client didn't provide a certificate"},
		{"certificate of another authority", func(c *tls.Config) {
			c.Certificates = newStranger(t)
		}, "certificate signed by unknown authority"},
		{"no ALPN", func(c *tls.Config) { c.NextProtos = nil }, "does not speak h2"},
		{"ALPN http/1.1", func(c *tls.Config) { c.NextProtos = []string{"http/1.1"} }, "does not speak h2"},
		{"TLS 1.2", func(c *tls.Config) { c.MinVersion, c.MaxVersion = 0, tls.VersionTLS12 }, "unsupported versions"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := newEnv(t, echo)
			cfg := tlsConfig(e.clientTLS)
			tt.edit(cfg)
			conn, err := e.dial(t.Context())
			must(t, err)
			tc := tls.Client(conn, cfg)
			_ = tc.Handshake()
			_, _ = tc.Read(make([]byte, 1))
			_ = conn.Close()
			err = e.srv.waitServeErr(t)
			if !errors.Is(err, ErrTLS) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want ErrTLS and %q", err, tt.want)
			}
		})
	}
}

func TestClientWantsH2(t *testing.T) {
	e := newEnv(t, echo)
	cfg := e.ca.server(t) // no ALPN at all
	ln, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
	must(t, err)
	defer ln.Close()
	go func() {
		if c, err := ln.Accept(); err == nil {
			_ = c.(*tls.Conn).Handshake()
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
		}
	}()
	dial := func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", ln.Addr().String())
	}
	_, _, err = e.pool.Connect(t.Context(), e.key, dial, e.clientTLS, ConnectRequest{Authority: "a:1"})
	if !errors.Is(err, ErrTLS) || !errors.Is(err, errNoALPN) {
		t.Errorf("got %v, want ErrTLS: no h2", err)
	}
}

func TestServerWantsThePreface(t *testing.T) {
	t.Run("HTTP/1.1", func(t *testing.T) {
		e := newEnv(t, echo)
		p := dialRawQuiet(t, e)
		_, _ = io.WriteString(p.conn, "CONNECT 10.0.0.1:80 HTTP/1.1\r\n\r\n")
		p.wantGoAway(CodeProtocol)
	})
	t.Run("no SETTINGS", func(t *testing.T) {
		e := newEnv(t, echo)
		p := dialRawQuiet(t, e)
		_, _ = io.WriteString(p.conn, clientPreface)
		must(t, p.WritePing(false, [8]byte{}))
		p.wantGoAway(CodeProtocol)
	})
}

func TestHandlerContextEndsWithTheStream(t *testing.T) {
	ended := make(chan struct{})
	started := make(chan struct{}, 1)
	e := newEnv(t, func(ctx context.Context, r *ServerStream) {
		started <- struct{}{}
		<-ctx.Done() // as while dialling the backend
		if _, err := r.Accept(nil); err == nil {
			t.Error("accept of a request that was withdrawn succeeds")
		}
		close(ended)
	})
	ctx, cancel := withCancel(t)
	res := e.connectAsync(ctx)
	<-started
	cancel()
	<-res
	<-ended
}

func TestHandlerThatDoesNotAnswer(t *testing.T) {
	e := newEnv(t, func(context.Context, *ServerStream) {})
	_, _, err := e.connect(t.Context())
	var se *StatusError
	if !errors.As(err, &se) || se.Code != 503 {
		t.Errorf("got %v, want status 503", err)
	}
}

func TestAnswerOnce(t *testing.T) {
	e := newEnv(t, func(_ context.Context, r *ServerStream) {
		if err := r.Reject(200); err == nil {
			t.Error("Reject with 200 succeeds")
		}
		if err := r.Reject(401, Header{"why", "policy"}); err != nil {
			t.Error(err)
		}
		if _, err := r.Accept(nil); !errors.Is(err, errAnswered) {
			t.Errorf("second answer: got %v, want errAnswered", err)
		}
	})
	_, _, err := e.connect(t.Context())
	var se *StatusError
	if !errors.As(err, &se) || se.Code != 401 {
		t.Errorf("got %v, want status 401", err)
	}
}

func TestStreamIsClosedWhenTheHandlerReturns(t *testing.T) {
	e := newEnv(t, func(_ context.Context, r *ServerStream) {
		s, err := r.Accept(nil)
		if err == nil {
			_, _ = s.Write([]byte("bye"))
		}
	})
	s := e.mustConnect(t)
	got, err := io.ReadAll(s)
	if err != nil || string(got) != "bye" {
		t.Errorf("got %q, %v, want bye and EOF", got, err)
	}
}

func TestServerRefusesStreamsAboveTheLimit(t *testing.T) {
	e := newEnv(t, stallable, func(s *Server, _ *PoolConfig) { s.MaxConcurrentStreams = 2 })
	p := dialRaw(t, e)
	for id := uint32(1); id <= 5; id += 2 {
		p.headers(id, false, ":method", "CONNECT", ":authority", "a:1", "mode", "stall")
	}
	p.wantReset(5, CodeRefusedStream)
	must(t, p.WriteRSTStream(1, http2.ErrCodeCancel))
	p.connect(7)
	p.wantStatus(7, "200")
}

// TestHandlersAreBounded: requests that are reset at once must not pile up handlers that are slow to notice.
func TestHandlersAreBounded(t *testing.T) {
	release := make(chan struct{})
	var running, most atomic.Int64
	e := newEnv(t, func(context.Context, *ServerStream) {
		n := running.Add(1)
		for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
		}
		<-release
		running.Add(-1)
	}, func(s *Server, _ *PoolConfig) { s.MaxConcurrentStreams = 10 })
	p := dialRaw(t, e)
	for id := uint32(1); id < 200; id += 2 {
		p.connect(id)
		must(t, p.WriteRSTStream(id, http2.ErrCodeCancel))
	}
	p.wantPong()
	close(release)
	if got := most.Load(); got > 20 {
		t.Errorf("%d handlers at once, want at most twice the limit of 10", got)
	}
}

func TestShutdownInTwoSteps(t *testing.T) {
	e := newEnv(t, echo)
	p := dialRaw(t, e)
	p.connect(1)
	p.wantStatus(1, "200")
	shut := make(chan error, 1)
	go func() { shut <- e.srv.Shutdown(t.Context()) }()
	isGoAway := func(f http2.Frame) bool { return f.Header().Type == http2.FrameGoAway }
	if g := p.next(isGoAway).(*http2.GoAwayFrame); g.LastStreamID != maxStreamID || g.ErrCode != http2.ErrCodeNo {
		t.Fatalf("first GOAWAY: got %v", g)
	}
	// A request that crossed the GOAWAY on the wire is served.
	p.connect(3)
	p.wantStatus(3, "200")
	must(t, p.WritePing(true, drainPing))
	if g := p.next(isGoAway).(*http2.GoAwayFrame); g.LastStreamID != 3 {
		t.Fatalf("final GOAWAY: got last stream %d, want 3", g.LastStreamID)
	}
	p.connect(5)
	p.wantReset(5, CodeRefusedStream)
	// Open streams go on.
	must(t, p.WriteData(1, true, []byte("late")))
	var got []byte
	p.next(func(f http2.Frame) bool {
		d, ok := f.(*http2.DataFrame)
		if ok {
			got = append(got, d.Data()...)
		}
		return ok && d.StreamEnded()
	})
	if string(got) != "late" {
		t.Errorf("got %q, want late", got)
	}
	select {
	case err := <-shut:
		t.Fatalf("Shutdown returned %v with a stream open", err)
	default:
	}
	must(t, p.WriteData(3, true, nil))
	p.wantGoAway(CodeNo) // its last words, after lingerTime
	must(t, <-shut)
	if err := e.srv.ServeConn(t.Context(), dialTo(t, e.srv)); err == nil {
		t.Error("ServeConn of a client's end succeeds")
	}
}

func dialTo(tb testing.TB, ts *testServer) net.Conn {
	tb.Helper()
	c, err := net.Dial("tcp", ts.ln.Addr().String())
	must(tb, err)
	_ = c.(*net.TCPConn).CloseWrite()
	return c
}

func TestShutdownCutsAtItsDeadline(t *testing.T) {
	e := newEnv(t, stallable)
	s := e.mustConnect(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := e.srv.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want deadline exceeded", err)
	}
	if _, err := s.Read(make([]byte, 1)); err == nil {
		t.Error("stream survives the end of Shutdown")
	}
	if err := e.srv.waitServeErr(t); !errors.Is(err, ErrServerClosed) {
		t.Errorf("ServeConn: got %v, want ErrServerClosed", err)
	}
}

func TestServeAfterShutdownSendsClientsOn(t *testing.T) {
	e := newEnv(t, echo)
	must(t, e.srv.Shutdown(t.Context()))
	p := dialRaw(t, e)
	p.connect(1)
	p.wantGoAway(CodeNo)
	if err := e.srv.waitServeErr(t); !errors.Is(err, ErrServerClosed) {
		t.Errorf("got %v, want ErrServerClosed", err)
	}
}

func TestContextKillsAtOnce(t *testing.T) {
	e := newEnv(t, stallable)
	s := e.mustConnect(t)
	e.srv.cancel()
	if _, err := s.Read(make([]byte, 1)); err == nil {
		t.Error("read succeeds after the server was killed")
	}
	if err := e.srv.waitServeErr(t); !errors.Is(err, context.Canceled) {
		t.Errorf("ServeConn: got %v, want context canceled", err)
	}
}

func TestStats(t *testing.T) {
	e := newEnv(t, echo)
	a, b := e.mustConnect(t), e.mustConnect(t)
	want := Stats{Conns: 1, Streams: 2, ConnsTotal: 1, StreamsTotal: 2}
	if got := e.pool.Stats(); got != want {
		t.Errorf("pool: got %+v, want %+v", got, want)
	}
	if got := e.srv.Stats(); got != want {
		t.Errorf("server: got %+v, want %+v", got, want)
	}
	_ = a.Close()
	_ = b.Close()
	want.Streams = 0
	eventually(t, func() bool { return e.pool.Stats() == want && e.srv.Stats() == want })
}

// TestPeerThatDoesNotReadIsCutOff: the answers it provokes must not pile up.
func TestPeerThatDoesNotReadIsCutOff(t *testing.T) {
	e := newEnv(t, echo)
	p := dialRaw(t, e)
	for {
		if err := p.WritePing(false, [8]byte{}); err != nil {
			break
		}
	}
	if err := e.srv.waitServeErr(t); !strings.Contains(err.Error(), CodeEnhanceYourCalm.String()) {
		t.Errorf("got %v, want ENHANCE_YOUR_CALM", err)
	}
}

func newStranger(tb testing.TB) []tls.Certificate {
	return newCA(tb).client(tb).Certificates
}
