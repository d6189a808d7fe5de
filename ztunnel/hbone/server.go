// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"time"
)

const (
	defaultHandshakeTimeout = 10 * time.Second
	defaultPingInterval     = 10 * time.Second
	defaultPingTimeout      = 20 * time.Second
)

// Server serves HBONE connections. Set the fields before the first ServeConn and leave them alone then.
type Server struct {
	// TLS must ask for and verify the client's certificate; the server itself checks neither. ALPN, tickets and record
	// sizes are set by the server, on a copy.
	TLS *tls.Config
	// Handler serves one CONNECT, in a goroutine of its own. It calls Accept or Reject once; returning without is an
	// answer of 503. The stream is closed when Handler returns, so Handler stays until the copying is over. ctx ends when
	// the request is withdrawn before its answer, when the client or the engine resets the stream with an error, and
	// when the connection is lost under it; not when the stream ends cleanly, because data may still have to be passed on,
	// and not during Splice, which knows what is left to pass on and returns. Data that nobody reads delays it by 2 s.
	Handler func(ctx context.Context, s *ServerStream)

	// Admit, if set, is asked before each handshake, and may wait. The function it returns is called once, when the
	// handshake is over; an error is what ServeConn wraps and returns, the connection closed. Until then end ends the
	// handshake: ServeConn returns an error that wraps [ErrTLS] and end's. Later it does nothing.
	Admit func(raw net.Conn, end func(error)) (done func(), err error)
	// HandshakeTimeout bounds the TLS handshake. Zero means 10 s.
	HandshakeTimeout time.Duration
	// PingInterval is the pause before each keepalive PING, PingTimeout the time to answer it. Zero means 10 s and 20 s,
	// a negative interval none.
	PingInterval, PingTimeout time.Duration
	// MaxConcurrentStreams is advertised and enforced. Zero means 200.
	MaxConcurrentStreams uint32
	// Windows bound what clients may send ahead.
	Windows Windows
	// Memory is what windows are lent from. Nil means no limit but Windows.
	Memory Memory
	// Logger gets debug messages about connections that ended badly. Nil means none.
	Logger *slog.Logger

	once  sync.Once
	tls   *tls.Config
	stats counters

	mu      sync.Mutex
	closing bool
	conns   map[*conn]struct{} // past the handshake
	gone    chan struct{}      // closed when closing and conns is empty
}

func (s *Server) init() {
	s.once.Do(func() {
		s.tls = tlsConfig(s.TLS)
		s.conns = make(map[*conn]struct{})
		s.gone = make(chan struct{})
		if s.Logger == nil {
			s.Logger = slog.New(slog.DiscardHandler)
		}
	})
}

// ServeConn serves raw, which it owns, until the connection ends and all its handlers have returned.
//
// It returns nil when the client closed the connection or was drained, an error wrapping [ErrTLS] if the handshake did
// not succeed in time, [ErrServerClosed] after Shutdown. Ending ctx closes the connection at once.
func (s *Server) ServeConn(ctx context.Context, raw net.Conn) error {
	s.init()
	c, err := s.admit(ctx, raw)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c.abort = cancel
	if !s.add(c) {
		c.turnAway()
		err = ErrServerClosed
	}
	return errors.Join(err, s.serve(ctx, c))
}

// serve runs a connection whose handshake is over.
func (s *Server) serve(ctx context.Context, c *conn) error {
	defer s.remove(c)
	stop := context.AfterFunc(ctx, func() { c.kill(context.Cause(ctx)) })
	defer stop()
	c.handle = func(st *Stream, b *headerBlock) { s.handle(ctx, st, b) }

	err := c.run()
	// Streams that broke have told their handlers. Others have ended cleanly, and what they brought is still passed on.
	c.handlers.Wait()
	if err != nil {
		s.Logger.Debug("hbone connection ended", "peer", addrOf(c.wire), "err", err)
		return fmt.Errorf("serve %s: %w", addrOf(c.wire), err)
	}
	return nil
}

// admit does the handshake if it may begin.
func (s *Server) admit(ctx context.Context, raw net.Conn) (*conn, error) {
	if s.Admit != nil {
		var end context.CancelCauseFunc
		ctx, end = context.WithCancelCause(ctx)
		defer end(nil)
		done, err := s.Admit(raw, end)
		if err != nil {
			_ = raw.Close()
			return nil, fmt.Errorf("handshake not begun: %w", err)
		}
		defer done()
	}
	return s.handshake(ctx, raw)
}

func (s *Server) handshake(ctx context.Context, raw net.Conn) (*conn, error) {
	timeout := orDefault(s.HandshakeTimeout, defaultHandshakeTimeout)
	hctx, cancel := context.WithTimeoutCause(ctx, timeout, errHandshakeTimeout)
	defer cancel()
	w := newWire(raw)
	tc := tls.Server(w, s.tls)
	state, err := shake(hctx, tc, w)
	if err != nil {
		return nil, err
	}
	c := newConn(tc, w, connConfig{
		pingInterval: orDefault(s.PingInterval, defaultPingInterval),
		pingTimeout:  orDefault(s.PingTimeout, defaultPingTimeout),
		maxStreams:   orDefault(s.MaxConcurrentStreams, ourMaxStreams),
		windows:      s.Windows,
		memory:       s.Memory,
		stats:        &s.stats,
	})
	c.state = state
	return c, nil
}

func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// timeoutError is a net.Error, like those of package net.
type timeoutError struct{ msg string }

func (e *timeoutError) Error() string   { return e.msg }
func (e *timeoutError) Timeout() bool   { return true }
func (e *timeoutError) Temporary() bool { return true }
func (e *timeoutError) Is(target error) bool {
	return target == context.DeadlineExceeded
}

var errHandshakeTimeout error = &timeoutError{"no handshake in time"}

// add makes c one of those that Shutdown ends, unless Shutdown has begun.
func (s *Server) add(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return false
	}
	s.conns[c] = struct{}{}
	return true
}

func (s *Server) remove(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.conns[c]; !ok {
		return
	}
	delete(s.conns, c)
	if s.closing && len(s.conns) == 0 {
		close(s.gone)
	}
}

// beginShutdown stops add and returns the connections there are.
func (s *Server) beginShutdown() []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closing && len(s.conns) == 0 {
		close(s.gone)
	}
	s.closing = true
	return slices.Collect(maps.Keys(s.conns))
}

// Shutdown ends all connections gracefully: clients are told to open no more streams, those that are open continue until
// they end or ctx does, and whatever is left then is cut. It returns when all have ended, with ctx's error if something
// was cut. Connections whose handshake ends later are told to go elsewhere; ServeConn returns [ErrServerClosed] for them.
func (s *Server) Shutdown(ctx context.Context) error {
	s.init()
	for _, c := range s.beginShutdown() {
		c.startDrain()
	}
	select {
	case <-s.gone:
		return nil
	case <-ctx.Done():
	}
	for _, c := range s.beginShutdown() {
		c.kill(ErrServerClosed)
	}
	<-s.gone
	return context.Cause(ctx)
}

// Stats returns the server's counters.
func (s *Server) Stats() Stats { return s.stats.snapshot() }

// handle runs the handler for one request.
func (s *Server) handle(ctx context.Context, st *Stream, b *headerBlock) {
	ctx, cancel := context.WithCancel(ctx)
	ss := &ServerStream{s: st, authority: b.authority, headers: b.fields}
	st.onCancel(cancel)
	defer cancel()
	defer func() {
		if err := ss.Reject(503); err != nil && !errors.Is(err, errAnswered) {
			s.Logger.Debug("hbone stream ended before its answer", "peer", st.RemoteAddr(), "err", err)
		}
		_ = st.Close()
	}()
	s.Handler(ctx, ss)
}

// serve starts the handler of a new stream.
func (c *conn) serve(s *Stream, b *headerBlock) {
	c.serving.Add(1)
	c.handlers.Add(1)
	go c.runHandler(s, b)
}

func (c *conn) runHandler(s *Stream, b *headerBlock) {
	defer c.handlers.Done()
	defer c.serving.Add(-1)
	c.handle(s, b)
}
