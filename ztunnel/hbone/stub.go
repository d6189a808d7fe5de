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
	"sync/atomic"
	"time"
)

var errStub = errors.New("not yet")

// Header is one header field. Names are lower case.
type Header struct{ Name, Value string }

// Key says which connections may carry a request: only those with an equal key.
type Key struct {
	// Source is the identity that dials, Expected the identities that may answer (joined by the caller).
	Source, Expected string
	Addr             netip.AddrPort
	SourceIP         netip.Addr
}

// PoolConfig configures a Pool; zero values mean the defaults, negative durations "never".
type PoolConfig struct {
	DialTimeout  time.Duration // dial and TLS handshake together, default 10 s
	IdleTimeout  time.Duration // a connection without streams is closed after this, default 5 min
	PingInterval time.Duration // default 10 s
	PingTimeout  time.Duration // default 20 s
	MaxStreams   int           // default 100
	Logger       *slog.Logger
}

// ConnectRequest is one CONNECT.
type ConnectRequest struct {
	Authority string
	Headers   []Header
}

// ConnectResponse is the peer's 200.
type ConnectResponse struct {
	Status  int
	Headers []Header
}

// Header returns the first value of the named header, or "".
func (r *ConnectResponse) Header(name string) string { return "" }

// Stats are counters for metrics.
type Stats struct {
	Conns, Streams           int64  // now
	ConnsTotal, StreamsTotal uint64 // ever
}

// Pool keeps client connections.
type Pool struct{}

func NewPool(cfg PoolConfig) *Pool { return &Pool{} }

func (p *Pool) Connect(ctx context.Context, key Key, dial func(context.Context) (net.Conn, error), cfg *tls.Config, req ConnectRequest) (*Stream, *ConnectResponse, error) {
	return nil, nil, errStub
}

// CloseIdle closes the connections that carry no stream.
func (p *Pool) CloseIdle() {}

// Close waits for streams to end, at most until ctx ends, and closes everything.
func (p *Pool) Close(ctx context.Context) error { return nil }

func (p *Pool) Stats() Stats { return Stats{} }

// Server serves HBONE connections.
type Server struct {
	TLS     *tls.Config
	Handler func(ctx context.Context, s *ServerStream) // the stream is closed when it returns

	HandshakeTimeout     time.Duration // default 10 s
	PingInterval         time.Duration
	PingTimeout          time.Duration
	MaxConcurrentStreams uint32 // default 200
	Logger               *slog.Logger
}

func (s *Server) ServeConn(ctx context.Context, conn net.Conn) error { return errStub }

// Shutdown lets streams end, at most until ctx ends.
func (s *Server) Shutdown(ctx context.Context) error { return nil }

func (s *Server) Stats() Stats { return Stats{} }

// ServerStream is a CONNECT request that waits for Accept or Reject.
type ServerStream struct{}

func (s *ServerStream) Authority() string                          { return "" }
func (s *ServerStream) Header(name string) string                  { return "" }
func (s *ServerStream) Headers() []Header                          { return nil }
func (s *ServerStream) ConnState() tls.ConnectionState             { return tls.ConnectionState{} }
func (s *ServerStream) LocalAddr() net.Addr                        { return nil }
func (s *ServerStream) RemoteAddr() net.Addr                       { return nil }
func (s *ServerStream) Accept(headers []Header) (*Stream, error)   { return nil, errStub }
func (s *ServerStream) Reject(status int, headers ...Header) error { return errStub }

// Stream is a byte stream inside a connection; a net.Conn with half-close and reset.
type Stream struct{}

func (s *Stream) Read(p []byte) (int, error)          { return 0, errStub }
func (s *Stream) Write(p []byte) (int, error)         { return 0, errStub }
func (s *Stream) ReadFrom(r io.Reader) (int64, error) { return 0, errStub }
func (s *Stream) WriteTo(w io.Writer) (int64, error)  { return 0, errStub }
func (s *Stream) CloseWrite() error                   { return errStub }
func (s *Stream) Close() error                        { return errStub }
func (s *Stream) Reset(code ErrCode)                  {}
func (s *Stream) ConnState() tls.ConnectionState      { return tls.ConnectionState{} }
func (s *Stream) LocalAddr() net.Addr                 { return nil }
func (s *Stream) RemoteAddr() net.Addr                { return nil }
func (s *Stream) SetDeadline(t time.Time) error       { return nil }
func (s *Stream) SetReadDeadline(t time.Time) error   { return nil }
func (s *Stream) SetWriteDeadline(t time.Time) error  { return nil }

// Splice copies between tcp and s both ways until both directions have ended, and closes both.
//
// To cut it short, call s.Reset or tcp.Close.
func Splice(tcp *net.TCPConn, s *Stream, sent, received *atomic.Uint64) error { return errStub }
