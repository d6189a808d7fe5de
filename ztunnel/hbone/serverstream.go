// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
)

// errAnswered is what a second answer to the same request gets.
var errAnswered = errors.New("request is already answered")

// ServerStream is a CONNECT request that waits for Accept or Reject.
type ServerStream struct {
	s         *Stream
	authority string
	headers   []Header
}

// Authority returns the :authority as the client sent it, see [ParseAuthority].
func (r *ServerStream) Authority() string { return r.authority }

// Header returns the first value of the named header, or "". Names are lower case.
func (r *ServerStream) Header(name string) string { return findHeader(r.headers, name) }

// Headers returns all header fields of the request in order.
func (r *ServerStream) Headers() []Header { return r.headers }

// ConnState returns the TLS state of the connection, for the client's certificate.
func (r *ServerStream) ConnState() tls.ConnectionState { return r.s.c.state }

// LocalAddr returns the local address of the connection.
func (r *ServerStream) LocalAddr() net.Addr { return r.s.c.localAddr() }

// RemoteAddr returns the client's address.
func (r *ServerStream) RemoteAddr() net.Addr { return r.s.c.remoteAddr() }

// Accept answers 200 with headers at once and returns the stream. It fails if the request was answered or the client has
// given it up.
func (r *ServerStream) Accept(headers []Header) (*Stream, error) {
	if err := checkHeaders(headers); err != nil {
		return nil, err
	}
	if err := r.s.respond(200, headers, false); err != nil {
		return nil, err
	}
	return r.s, nil
}

// Reject answers with a status other than 200 and ends the stream.
func (r *ServerStream) Reject(status int, headers ...Header) error {
	if status < 300 || status > 599 {
		return fmt.Errorf("reject with status %d", status)
	}
	if err := checkHeaders(headers); err != nil {
		return err
	}
	return r.s.respond(status, headers, true)
}

// respond sends the response's HEADERS, with END_STREAM if end is set.
func (s *Stream) respond(status int, headers []Header, end bool) error {
	c := s.c
	c.w.qmu.Lock()
	over, err := s.respondLocked(status, headers, end)
	c.w.qmu.Unlock()
	if err != nil {
		return err
	}
	c.w.send()
	switch {
	case over:
		c.forget(s)
	case end:
		// RFC 9113, section 8.1: the answer is complete, the client need not send the rest.
		c.resetStream(s, CodeNo, "rejected")
	}
	return nil
}

// respondLocked is called with the queue lock held.
func (s *Stream) respondLocked(status int, headers []Header, end bool) (over bool, err error) {
	c := s.c
	c.mu.Lock()
	maxFrame := c.peerMaxFrame
	c.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.responded:
		return false, errAnswered
	case s.werr != nil:
		return false, s.werr
	}
	c.henc.response(status, headers)
	if err := c.w.pushLocked(c.henc.frames(s.id, maxFrame, end)); err != nil {
		return false, err
	}
	if !end {
		s.openWindowLocked()
	}
	s.responded = true
	s.localEnd, s.endQueued = end, end
	return end && s.remoteEnd, nil
}
