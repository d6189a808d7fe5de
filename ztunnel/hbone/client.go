// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
)

// ConnectRequest is one CONNECT.
type ConnectRequest struct {
	// Authority is the :authority, see [ParseAuthority].
	Authority string
	// Headers are sent as they are, in order. Names are lower case.
	Headers []Header
}

// ConnectResponse is the peer's 200.
type ConnectResponse struct {
	Status  int
	Headers []Header
}

// Header returns the first value of the named header, or "".
func (r *ConnectResponse) Header(name string) string { return findHeader(r.Headers, name) }

// errUnusable reports a connection that takes no more streams. The request did not leave.
var errUnusable = errors.New("connection takes no more streams")

// newClientConn does the TLS handshake on raw, which it owns, and starts the connection.
func newClientConn(ctx context.Context, raw net.Conn, base *tls.Config, cfg connConfig) (*conn, error) {
	w := newWire(raw)
	tc := tls.Client(w, tlsConfig(base))
	state, err := shake(ctx, tc, w)
	if err != nil {
		return nil, err
	}
	c := newConn(tc, w, cfg)
	c.state = state
	return c, nil
}

// await waits for the answer to the request of s. On error, which an answer other than 200 is too, the stream is closed.
func (s *Stream) await(ctx context.Context) (*ConnectResponse, error) {
	select {
	case <-s.ready:
	case <-ctx.Done():
		_ = s.Close()
		return nil, context.Cause(ctx)
	}
	resp, err := s.response()
	if err != nil {
		_ = s.Close()
	}
	return resp, err
}

// open sends the request. What decides whether the connection takes it happens under the queue lock, so a peer that has
// read our answer to its GOAWAY's PING can be sure that no request follows.
func (c *conn) open(req ConnectRequest) (*Stream, error) {
	if err := checkHeaders(req.Headers); err != nil {
		return nil, err
	}
	c.w.qmu.Lock()
	s, err := c.openLocked(req)
	c.w.qmu.Unlock()
	if err != nil {
		return nil, err
	}
	c.w.send()
	return s, nil
}

func (c *conn) openLocked(req ConnectRequest) (*Stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	id := c.lastID + 2
	if c.err != nil || c.goAway != nil || c.drain == drainClosing || c.w.closed || id > maxStreamID ||
		len(c.streams) >= int(min(c.peerMaxStreams, maxStreamID)) {
		return nil, errUnusable
	}
	c.henc.request(req.Authority, req.Headers)
	if err := c.w.pushLocked(c.henc.frames(id, c.peerMaxFrame, false)); err != nil {
		return nil, err
	}
	s := c.newStream(id)
	s.ready = make(chan struct{})
	c.lastID = id
	c.addLocked(s)
	s.mu.Lock()
	s.openWindowLocked()
	s.mu.Unlock()
	return s, nil
}

// answered reports whether the response's headers have arrived.
func (s *Stream) answered() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.responded
}

// answer takes the response. It reports whether the stream is over.
func (s *Stream) answer(status int, headers []Header, end bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead.Load() {
		return false
	}
	s.status, s.headers = status, headers
	s.remoteEnd = end
	s.wakeResponse()
	s.responded = true
	return end && s.endQueued
}

// wakeResponse is called with mu held.
func (s *Stream) wakeResponse() {
	if s.ready != nil && !s.responded {
		s.responded = true
		close(s.ready)
	}
}

// response returns what ready announced.
func (s *Stream) response() (*ConnectResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.status == 200:
		return &ConnectResponse{Status: s.status, Headers: s.headers}, nil
	case s.status != 0:
		return nil, &StatusError{Code: s.status}
	case s.werr != nil:
		return nil, s.werr
	}
	return nil, io.ErrUnexpectedEOF
}
