// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"
)

// Splice copies between tcp and s, both ways at once, until both directions have ended. It closes both before it returns.
//
//	tcp EOF                  -> END_STREAM         tcp read or write error -> RST_STREAM(CONNECT_ERROR)
//	END_STREAM               -> FIN                RST_STREAM, or the connection lost -> RST (SO_LINGER 0)
//	RST_STREAM(NO_ERROR, CANCEL) -> FIN after the data, then close
//
// A direction that ends cleanly leaves the other running, for as long as it likes. To end both from outside call s.Reset
// or tcp.Close.
//
// sent counts bytes from tcp into s, received those from s into tcp, as they go; nil means not counted. The result is the
// first error, nil if both directions ended cleanly.
func Splice(tcp *net.TCPConn, s *Stream, sent, received *atomic.Uint64) error {
	// A write to an application that does not read ends only with the stream.
	interrupt := func() { _ = tcp.SetDeadline(time.Unix(1, 0)) }
	s.whenBroken(&s.interrupt, interrupt)
	up := make(chan error, 1)
	go func() { up <- s.spliceFrom(tcp, orNew(sent)) }()
	down := s.spliceTo(tcp, orNew(received))
	first := down
	if err := <-up; first == nil {
		first = err
	}
	if s.lost() {
		_ = tcp.SetLinger(0)
	}
	_ = tcp.Close()
	_ = s.Close()
	return first
}

func orNew(n *atomic.Uint64) *atomic.Uint64 {
	if n == nil {
		n = new(atomic.Uint64)
	}
	return n
}

// spliceFrom copies tcp to the stream.
func (s *Stream) spliceFrom(tcp *net.TCPConn, sent *atomic.Uint64) error {
	s.wlock.Lock()
	defer s.wlock.Unlock()
	src := newSource(tcp)
	for {
		n, err := s.readBlock(src)
		sent.Add(uint64(n))
		switch {
		case err == nil:
		case err == io.EOF:
			return s.closeWrite()
		case s.writeErr() != nil:
			return s.writeErr() // The stream is dead; spliceTo learns it too and unblocks what is left.
		case errors.Is(err, net.ErrClosed), isTimeout(err):
			s.Reset(CodeCancel)
			return err
		default:
			s.Reset(CodeConnect)
			return err
		}
	}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// spliceTo copies the stream to tcp.
func (s *Stream) spliceTo(tcp *net.TCPConn, received *atomic.Uint64) error {
	for {
		n, err := s.writeBlock(tcp)
		received.Add(uint64(n))
		switch {
		case err == nil:
			continue
		case err == io.EOF:
			_ = tcp.CloseWrite()
			err = nil
		case s.readErr() == nil:
			s.Reset(CodeConnect) // tcp refused the data
		case s.lost():
			err = s.readErr() // not the deadline that interrupted the write
		}
		if s.dead.Load() {
			// Nothing can be sent any more either.
			_ = tcp.SetReadDeadline(time.Unix(1, 0))
		}
		return err
	}
}

// readErr returns what ended reading, nil if nothing has.
func (s *Stream) readErr() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rerr
}

// lost reports whether the stream ended in a way that the application must not take for a regular end.
func (s *Stream) lost() bool {
	err := s.readErr()
	return err != nil && err != io.EOF
}
