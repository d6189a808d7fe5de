// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

const (
	defaultDialTimeout = 10 * time.Second
	defaultIdleTimeout = 5 * time.Minute
	defaultMaxStreams  = 100

	// maxAttempts bounds how often one request is tried on connections that turn out to be going away.
	maxAttempts = 8

	// maxLost bounds how often one request loses its connection before an answer.
	maxLost = 3
)

// Key says which connections may carry a request: those dialled with an equal key.
type Key struct {
	// Source is the identity that dials. Expected are the identities that may answer, joined by the caller.
	Source, Expected string
	// Addr is the address dialled.
	Addr netip.AddrPort
	// SourceIP is the address dialled from, so that pods never share a connection.
	SourceIP netip.Addr
}

// PoolConfig configures a [Pool]. Zero values mean the defaults.
type PoolConfig struct {
	// DialTimeout bounds dial and TLS handshake together. Zero means 10 s.
	DialTimeout time.Duration
	// IdleTimeout is how long a connection without streams is kept. Zero means 5 minutes, negative means for ever.
	IdleTimeout time.Duration
	// PingInterval is the pause before each keepalive PING, PingTimeout the time to answer it. Zero means 10 s and 20 s,
	// a negative interval none.
	PingInterval, PingTimeout time.Duration
	// MaxStreams is how many streams a connection carries at once before it is retired, if the peer allows as many.
	// Zero means 100.
	MaxStreams int
	// Windows bound what servers may send ahead.
	Windows Windows
	// Memory is what windows are lent from. Nil means no limit but Windows.
	Memory Memory
	// Logger gets debug messages about connections that ended badly. Nil means none.
	Logger *slog.Logger
}

// DialFunc opens the TCP connection for a [Key]. It may outlive the call that brought it: waiters share a dial.
type DialFunc = func(ctx context.Context) (net.Conn, error)

// Pool keeps client connections and spreads CONNECT requests over them. Safe for concurrent use.
//
// A connection is shared until as many streams are active on it as MaxStreams or the peer allows; then it is retired for
// good: it takes no new streams even when old ones end, and closes with its last. The number of connections per key is
// not limited. There is at most one dial per key at a time.
type Pool struct {
	cfg   PoolConfig
	stats counters
	ctx   context.Context // ends with Close
	stop  context.CancelCauseFunc
	conns sync.WaitGroup // read loops and dials

	mu     sync.Mutex
	closed bool
	hosts  map[Key]*host
	all    map[*pooled]struct{} // retired ones too
}

// host is what the pool knows of one key.
type host struct {
	conns []*pooled
	dial  *dialCall
}

// pooled is a connection with the pool's own account of its streams. The pool's lock guards it.
type pooled struct {
	c       *conn
	key     Key
	active  int
	retired bool
	idle    *time.Timer
}

// dialCall is one dial that callers wait for.
type dialCall struct {
	done    chan struct{}
	err     error
	waiters int
	cancel  context.CancelCauseFunc
}

// NewPool returns an empty pool. The caller closes it.
func NewPool(cfg PoolConfig) *Pool {
	cfg.DialTimeout = orDefault(cfg.DialTimeout, defaultDialTimeout)
	cfg.IdleTimeout = orDefault(cfg.IdleTimeout, defaultIdleTimeout)
	cfg.PingInterval = orDefault(cfg.PingInterval, defaultPingInterval)
	cfg.PingTimeout = orDefault(cfg.PingTimeout, defaultPingTimeout)
	cfg.MaxStreams = orDefault(cfg.MaxStreams, defaultMaxStreams)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	p := &Pool{cfg: cfg, hosts: make(map[Key]*host), all: make(map[*pooled]struct{})}
	p.ctx, p.stop = context.WithCancelCause(context.Background())
	return p
}

// Connect sends req on a connection for key, dialling one if need be, and returns once the peer has answered 200. The
// caller owns the Stream.
//
// dial and cfg are used only if a new connection is needed; whoever waits for that connection shares it, and giving up
// does not disturb the others. cfg verifies the peer (crypto/tls needs ServerName, or InsecureSkipVerify together with
// VerifyConnection or VerifyPeerCertificate).
//
// A request is sent again on another connection if the peer declares it unprocessed (GOAWAY, REFUSED_STREAM), or if the
// connection is lost before the answer: a stream carries nothing before that, so no byte of the caller's is sent twice.
// Errors: [*StatusError] for an answer other than 200, one wrapping [ErrDial] or [ErrTLS] if there was no connection,
// [ErrPingTimeout], [*StreamError], [*ConnError], [ErrGoAway], [ErrPoolClosed], or the cause of ctx.
func (p *Pool) Connect(ctx context.Context, key Key, dial DialFunc, cfg *tls.Config, req ConnectRequest) (*Stream, *ConnectResponse, error) {
	var last error
	losses := 0
	for range maxAttempts {
		s, resp, err := p.attempt(ctx, key, dial, cfg, req)
		if lost(err) {
			losses++
		}
		if err == nil || losses == maxLost || !unprocessed(err) && !lost(err) {
			return s, resp, err
		}
		last = err
	}
	return nil, nil, last
}

// attempt sends req on one connection.
func (p *Pool) attempt(ctx context.Context, key Key, dial DialFunc, cfg *tls.Config, req ConnectRequest) (*Stream, *ConnectResponse, error) {
	pc, err := p.checkout(ctx, key, dial, cfg)
	if err != nil {
		return nil, nil, err
	}
	s, resp, err := p.connectOn(ctx, pc, req)
	if unprocessed(err) || lost(err) {
		p.retire(pc)
	}
	return s, resp, err
}

// connectOn sends req on a connection that was checked out for it.
func (p *Pool) connectOn(ctx context.Context, pc *pooled, req ConnectRequest) (*Stream, *ConnectResponse, error) {
	s, err := pc.c.open(req)
	if err != nil {
		p.streamEnded(pc) // there never was one
		return nil, nil, err
	}
	resp, err := s.await(ctx)
	if err != nil {
		return nil, nil, err
	}
	return s, resp, nil
}

// unprocessed reports whether err proves that the peer did not look at the request.
func unprocessed(err error) bool {
	var se *StreamError
	if errors.As(err, &se) {
		return se.Remote && se.Code == CodeRefusedStream
	}
	return errors.Is(err, errUnusable) || errors.Is(err, ErrGoAway)
}

// lost reports whether err is the end of a connection whose peer said nothing more: its process died, say. A refused
// certificate is an alert, and no loss.
func lost(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
