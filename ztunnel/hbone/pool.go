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

// checkout returns a connection on which one stream more is accounted for.
func (p *Pool) checkout(ctx context.Context, key Key, dial DialFunc, cfg *tls.Config) (*pooled, error) {
	for {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		pc, call, err := p.pick(key, dial, cfg)
		if err != nil || pc != nil {
			return pc, err
		}
		select {
		case <-call.done:
			if call.err != nil {
				return nil, call.err
			}
		case <-ctx.Done():
			p.abandon(key, call)
			return nil, context.Cause(ctx)
		}
	}
}

// pick returns a connection with room, or the dial to wait for.
func (p *Pool) pick(key Key, dial DialFunc, cfg *tls.Config) (*pooled, *dialCall, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, nil, ErrPoolClosed
	}
	h := p.hostLocked(key)
	if pc := p.pickLocked(h); pc != nil {
		return pc, nil, nil
	}
	if h.dial == nil {
		p.dialLocked(h, key, dial, cfg)
	}
	h.dial.waiters++
	return nil, h.dial, nil
}

func (p *Pool) hostLocked(key Key) *host {
	h := p.hosts[key]
	if h == nil {
		h = new(host)
		p.hosts[key] = h
	}
	return h
}

// pickLocked takes the first connection that has room. One that is full with this stream is retired for good.
func (p *Pool) pickLocked(h *host) *pooled {
	for len(h.conns) > 0 {
		pc := h.conns[0]
		limit, ok := pc.c.limit(p.cfg.MaxStreams)
		if ok && pc.active+1 < limit {
			p.useLocked(pc)
			return pc
		}
		h.conns = h.conns[1:]
		pc.retired = true
		if ok && pc.active < limit {
			p.useLocked(pc)
			return pc
		}
		if pc.active == 0 {
			pc.c.retire()
		}
	}
	return nil
}

// limit returns how many streams the connection may carry at once; ok is false if it takes no new ones.
func (c *conn) limit(most int) (n int, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ok = c.err == nil && c.goAway == nil && c.drain == drainNone && c.lastID+2 <= maxStreamID
	return min(most, int(min(c.peerMaxStreams, maxStreamID))), ok
}

func (p *Pool) useLocked(pc *pooled) {
	pc.active++
	if pc.idle != nil {
		pc.idle.Stop()
		pc.idle = nil
	}
}

// streamEnded is called when a stream has left its connection.
func (p *Pool) streamEnded(pc *pooled) {
	p.mu.Lock()
	pc.active--
	idle := pc.active == 0
	retired := pc.retired
	if idle && !retired && p.cfg.IdleTimeout > 0 {
		pc.idle = time.AfterFunc(p.cfg.IdleTimeout, func() { p.expire(pc) })
	}
	p.mu.Unlock()
	if idle && retired {
		pc.c.retire()
	}
}

// expire retires a connection that has been idle for long.
func (p *Pool) expire(pc *pooled) {
	p.mu.Lock()
	idle := pc.active == 0
	if idle {
		p.removeLocked(pc)
	}
	p.mu.Unlock()
	if idle {
		pc.c.retire()
	}
}

// retire makes a connection take no more streams from this pool.
func (p *Pool) retire(pc *pooled) {
	p.mu.Lock()
	p.removeLocked(pc)
	idle := pc.active == 0
	p.mu.Unlock()
	if idle {
		pc.c.retire()
	}
}

func (p *Pool) removeLocked(pc *pooled) {
	pc.retired = true
	if pc.idle != nil {
		pc.idle.Stop()
		pc.idle = nil
	}
	h := p.hosts[pc.key]
	if h == nil {
		return
	}
	for i, other := range h.conns {
		if other == pc {
			h.conns = append(h.conns[:i:i], h.conns[i+1:]...)
			break
		}
	}
	if len(h.conns) == 0 && h.dial == nil {
		delete(p.hosts, pc.key)
	}
}

// CloseIdle closes the connections that carry no stream.
func (p *Pool) CloseIdle() {
	p.mu.Lock()
	var idle []*pooled
	for pc := range p.all {
		if pc.active == 0 {
			p.removeLocked(pc)
			idle = append(idle, pc)
		}
	}
	p.mu.Unlock()
	for _, pc := range idle {
		pc.c.retire()
	}
}

// Close lets streams end, at most until ctx ends, and closes every connection. New requests get [ErrPoolClosed]. It
// returns when all goroutines of the pool have ended, with ctx's error if streams were cut.
func (p *Pool) Close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.retireAll()
	gone := make(chan struct{})
	go func() {
		p.conns.Wait()
		close(gone)
	}()
	select {
	case <-gone:
		p.stop(ErrPoolClosed)
		return nil
	case <-ctx.Done():
	}
	p.stop(ErrPoolClosed)
	<-gone
	return context.Cause(ctx)
}

func (p *Pool) retireAll() {
	p.mu.Lock()
	all := make([]*pooled, 0, len(p.all))
	for pc := range p.all {
		p.removeLocked(pc)
		if pc.active == 0 {
			all = append(all, pc)
		}
	}
	for _, h := range p.hosts {
		if h.dial != nil {
			h.dial.cancel(ErrPoolClosed)
		}
	}
	p.mu.Unlock()
	for _, pc := range all {
		pc.c.retire()
	}
}

// Stats returns the pool's counters.
func (p *Pool) Stats() Stats { return p.stats.snapshot() }
