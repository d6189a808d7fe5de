// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"time"
)

// Splice copies between tcp and s, both ways at once, until both directions have ended. It closes both before it returns.
//
//	tcp EOF                  -> END_STREAM         tcp read or write error -> RST_STREAM(CONNECT_ERROR)
//	END_STREAM               -> FIN                RST_STREAM, or the connection lost -> RST (SO_LINGER 0)
//	RST_STREAM(NO_ERROR, CANCEL) -> FIN after the data, then close
//
// A direction that ends cleanly leaves the other running, for as long as it likes. What came before an error is passed on
// before the error, both ways: an application that has stopped reading gets 2 s for it. To end both directions from
// outside, without that, call s.Reset or tcp.Close.
//
// sent counts bytes from tcp into s, received those from s into tcp, as they go; nil means not counted. The result is the
// first error, nil if both directions ended cleanly.
func Splice(tcp *net.TCPConn, s *Stream, sent, received *atomic.Uint64) error {
	p := &splice{tcp: tcp, s: s, received: orNew(received), upDone: make(chan struct{}), downErr: make(chan error, 1)}
	p.to = newSink(tcp)
	s.onDeath(p.interrupt)
	s.passOn(p.to, p.received, p.down)
	err := p.up(orNew(sent))
	close(p.upDone)
	first := <-p.downErr
	if first == nil || (err != nil && isOwnReset(first)) {
		first = err // what the stream was reset for
	}
	if s.gone() {
		p.settle()
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

type splice struct {
	tcp      *net.TCPConn
	to       *sink // tcp
	s        *Stream
	received *atomic.Uint64
	finSent  atomic.Bool
	upDone   chan struct{} // closed when up has returned
	downErr  chan error    // what down ended with
}

// longAgo is a deadline that interrupts.
var longAgo = time.Unix(1, 0)

// interrupt ends waits for tcp when the stream has died. There is nobody left to send to. A write goes on for a while: it
// is what came before the end, but an application that does not read must not hold it for ever.
func (p *splice) interrupt() {
	_ = p.tcp.SetReadDeadline(longAgo)
	switch broken, dropped := p.s.fate(); {
	case dropped:
		_ = p.tcp.SetWriteDeadline(longAgo)
	case broken:
		_ = p.tcp.SetWriteDeadline(time.Now().Add(breakGrace))
	}
}

// up copies tcp to the stream.
func (p *splice) up(sent *atomic.Uint64) error {
	s := p.s
	s.wlock.Lock()
	defer s.wlock.Unlock()
	src := newSource(p.tcp, s)
	src.ended = p.ended
	for {
		n, err := s.readBlock(src, true)
		sent.Add(uint64(n))
		switch {
		case err == nil:
			continue
		case err == io.EOF:
			return s.closeWrite() // does nothing if the end went with the last data
		case s.writeErr() != nil:
			return s.writeErr() // The stream is dead; down learns it too.
		}
		// Whatever it is, the data may be incomplete: CANCEL would read as its end.
		s.Reset(CodeConnect)
		return err
	}
}

// ended says what an EOF of tcp is. It is not always the application's FIN: after a reset the first system call gets the
// error, which may be a write, and reads see an EOF.
func (p *splice) ended() error {
	if !p.finSent.Load() && tcpClosed(p.tcp) {
		return syscall.ECONNRESET
	}
	return io.EOF
}

// down copies what the stream has to tcp. It returns when there is no more, and is called again when there is; at the end
// of the stream it says so.
func (p *splice) down() {
	s := p.s
	for {
		b, err := s.nextBlock()
		if b == nil && err == nil {
			return
		}
		if b != nil {
			var n int
			n, err = s.pass(b, p.to)
			p.received.Add(uint64(n))
		}
		switch {
		case err == nil:
			if broken, dropped := s.fate(); broken && !dropped {
				_ = p.tcp.SetWriteDeadline(time.Now().Add(breakGrace)) // it reads
			}
			continue
		case err == io.EOF:
			p.finSent.Store(true)
			_ = p.tcp.CloseWrite()
			err = nil
		case s.lost():
			err = s.readErr() // not the deadline that interrupted the write
		default:
			p.awaitAnswer()
		}
		p.downErr <- err
		return
	}
}

// awaitAnswer resets the stream of an application that took no more data. It may have said why before it closed, so up
// goes first, which ends soon.
func (p *splice) awaitAnswer() {
	if !tcpClosed(p.tcp) {
		_ = p.tcp.SetReadDeadline(longAgo)
	}
	select {
	case <-p.upDone:
	case <-time.After(breakGrace): // up waits for the peer's window
	}
	p.s.Reset(CodeConnect)
}

// settle waits until the application's kernel has what was written: closing with unread data, or with a reset, throws
// away the rest.
func (p *splice) settle() {
	left := unsent(p.tcp)
	for deadline := time.Now().Add(breakGrace); left > 0 && time.Now().Before(deadline); {
		if _, dropped := p.s.fate(); dropped {
			return
		}
		time.Sleep(2 * time.Millisecond) // between two looks: no event tells
		if n := unsent(p.tcp); n < left {
			left, deadline = n, time.Now().Add(breakGrace)
		}
	}
}

// isOwnReset reports whether err is a reset of the stream by this end.
func isOwnReset(err error) bool {
	var reset *StreamError
	return errors.As(err, &reset) && !reset.Remote
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// gone reports whether the stream has died and was not given up by this end.
func (s *Stream) gone() bool {
	_, dropped := s.fate()
	return !s.alive() && !dropped
}

// fate reports whether the stream broke and whether this end has given it up.
func (s *Stream) fate() (broken, dropped bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.brokenLocked(), s.dropped
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
