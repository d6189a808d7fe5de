// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Stream is a byte stream inside a connection: a [net.Conn] with half-close and reset.
//
// What the peer has sent is read before what ended it: END_STREAM, and RST_STREAM with NO_ERROR or CANCEL, then read as
// io.EOF, another RST_STREAM as a [*StreamError]. After END_STREAM no reset matters to a reader. After any reset Write
// returns the [*StreamError].
//
// One goroutine may read while another writes; CloseWrite, Close, Reset and the deadlines are safe from any. The owner
// calls Close or Reset when done.
type Stream struct {
	c  *conn
	id uint32

	wlock sync.Mutex  // one writer at a time; taken before mu
	dead  atomic.Bool // no more frames of this stream may be sent

	mu         sync.Mutex
	rcond      sync.Cond // data, or the end of it
	wcond      sync.Cond // send window
	head, tail *block    // received, not yet read
	recv       recvWindow
	sendWindow int
	remoteEnd  bool  // END_STREAM received
	localEnd   bool  // no more Write
	endQueued  bool  // END_STREAM is on its way, so that no RST_STREAM is needed
	rerr, werr error // once set, what Read (after head) and Write return
	dropped    bool  // this end has given up: nothing is read any more
	responded  bool  // final HEADERS received or queued
	status     int   // client: of the response
	headers    []Header
	rdl, wdl   deadline
	direct     direct

	ready chan struct{} // client: closed when the response or an error is there

	// Called without locks when the stream dies. cancel, once, ends the handler's context if the stream broke, see
	// brokenLocked, unless it is the handler's side that gives up. interrupt is Splice, which then ends by itself.
	cancel, interrupt func()
}

// newStream makes a stream that the caller adds to the connection. The caller holds c.mu.
func (c *conn) newStream(id uint32) *Stream {
	s := &Stream{c: c, id: id, sendWindow: c.peerWindow}
	s.recv = recvWindow{size: c.leastWindow(), credit: c.leastWindow()}
	s.rcond.L, s.wcond.L = &s.mu, &s.mu
	return s
}

// ConnState returns the TLS state of the connection that carries the stream.
func (s *Stream) ConnState() tls.ConnectionState { return s.c.state }

// LocalAddr returns the local address of the connection that carries the stream.
func (s *Stream) LocalAddr() net.Addr { return s.c.localAddr() }

// RemoteAddr returns the peer's address of the connection that carries the stream.
func (s *Stream) RemoteAddr() net.Addr { return s.c.remoteAddr() }

// CloseWrite sends END_STREAM, after a Write or ReadFrom that is under way. Reading goes on.
func (s *Stream) CloseWrite() error {
	s.wlock.Lock()
	defer s.wlock.Unlock()
	return s.closeWrite()
}

func (s *Stream) closeWrite() error {
	s.mu.Lock()
	over, err := s.localEnd || s.werr != nil, s.werr
	s.mu.Unlock()
	if over {
		return err
	}
	var frame [frameHeaderLen]byte
	if err := s.sendEnd(frameHeader{typ: frameData, stream: s.id}, frame[:]); err != errUnsent {
		return err
	}
	return nil
}

// errUnsent reports a frame that was not sent because the stream is over, and nothing says why.
var errUnsent = errors.New("stream is over")

// sendEnd sends the last frame of this direction. The caller holds wlock.
func (s *Stream) sendEnd(h frameHeader, frame []byte) error {
	s.mu.Lock()
	s.localEnd = true
	s.mu.Unlock()
	h.flags |= flagEndStream
	h.put(frame)
	sent := s.sendFrame(frame, s.queueEnd)
	s.mu.Lock()
	over, err := sent && s.remoteEnd, s.werr
	s.mu.Unlock()
	switch {
	case over:
		s.c.forget(s)
	case !sent && err == nil:
		return errUnsent
	case !sent:
		return err
	}
	return nil
}

// queueEnd marks END_STREAM as sent just before it is, unless the stream has died: neither Reset nor the peer's answer to
// it may come in between.
func (s *Stream) queueEnd() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endQueued = s.alive()
	return s.endQueued
}

// Close gives the stream up. What is still open of it is reset with CANCEL; after END_STREAM both ways nothing is sent.
func (s *Stream) Close() error {
	s.Reset(CodeCancel)
	return nil
}

// Reset ends both directions with RST_STREAM and drops what was received and not read, unless both have already ended.
// Reads and writes that wait return a [*StreamError].
func (s *Stream) Reset(code ErrCode) {
	s.mu.Lock()
	s.cancel = nil
	s.mu.Unlock()
	if s.over() {
		err := &StreamError{Code: code}
		s.cut(err, err, true)
		return
	}
	s.c.resetStream(s, code, "")
}

// over reports whether both directions have ended with END_STREAM.
func (s *Stream) over() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.endQueued && s.remoteEnd
}

// alive reports whether frames of this stream may still be sent.
func (s *Stream) alive() bool { return !s.dead.Load() }

// cut ends both directions: Read returns rerr, after what is queued unless drop is set, and Write returns werr.
// It returns false if the stream was cut before; then only drop still has an effect.
func (s *Stream) cut(rerr, werr error, drop bool) bool {
	s.mu.Lock()
	first := !s.dead.Swap(true)
	if drop && (s.rerr == nil || s.rerr == io.EOF) || first && !s.remoteEnd {
		s.rerr = rerr
	}
	s.dropped = s.dropped || drop
	if s.werr == nil {
		s.werr = werr
	}
	var dropped *block
	if drop {
		dropped, s.head, s.tail = s.head, nil, nil
		s.shrinkLocked(s.recv.size) // The owner is done: nothing of it is held any more.
	}
	interrupt := s.interrupt
	waits := s.head != nil && s.responded
	s.wakeResponse()
	s.wakeReaderLocked()
	s.wcond.Broadcast()
	s.rdl.stop()
	s.wdl.stop()
	s.mu.Unlock()
	s.c.flow.wake()
	freeAll(dropped)
	switch {
	case interrupt != nil:
		interrupt()
	case waits:
		time.AfterFunc(breakGrace, s.cancelHandler)
	default:
		s.cancelHandler()
	}
	return first
}

// brokenLocked reports whether the stream ended in a way that leaves nothing to do: reset before its answer or with an
// error, or lost with its connection. After a clean end data may still have to be passed on.
func (s *Stream) brokenLocked() bool {
	return s.dead.Load() && (!s.responded || (s.rerr != nil && s.rerr != io.EOF))
}

// breakGrace is what the application, or a handler, gets to take what came before the end of a broken stream.
const breakGrace = 2 * time.Second

// cancelHandler ends the handler's context if the stream broke, unless Splice is at work: it may still have data to pass on.
func (s *Stream) cancelHandler() {
	s.mu.Lock()
	cancel := s.cancel
	if cancel == nil || s.interrupt != nil || !s.brokenLocked() {
		s.mu.Unlock()
		return
	}
	s.cancel = nil
	s.mu.Unlock()
	cancel()
}

// onCancel has f called when the stream breaks, at once if it has.
func (s *Stream) onCancel(f func()) {
	s.mu.Lock()
	s.cancel = f
	s.mu.Unlock()
	s.cancelHandler()
}

// onDeath has f called when the stream dies or is given up later, at once if it has died.
func (s *Stream) onDeath(f func()) {
	s.mu.Lock()
	s.interrupt = f
	s.mu.Unlock()
	if !s.alive() {
		f()
	}
}

func freeAll(b *block) int {
	n := 0
	for b != nil {
		next := b.next
		n += b.len()
		b.free()
		b = next
	}
	return n
}

// reset takes the peer's RST_STREAM. It reports whether the stream had not been answered yet.
func (s *Stream) reset(code ErrCode) (early bool) {
	err := error(&StreamError{Code: code, Remote: true})
	rerr := err
	if code == CodeNo || code == CodeCancel {
		rerr = io.EOF
	}
	s.mu.Lock()
	early = !s.responded
	s.mu.Unlock()
	s.cut(rerr, err, false)
	return early
}

// endRemote takes the peer's END_STREAM. It reports whether the stream is over.
func (s *Stream) endRemote() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remoteEnd = true
	s.wakeReaderLocked()
	return s.endQueued
}

// addSendWindow takes a WINDOW_UPDATE or a change of the initial window. False is an overflow.
func (s *Stream) addSendWindow(n int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sendWindow+n > maxWindow {
		return false
	}
	s.sendWindow += n
	if s.sendWindow > 0 {
		s.wcond.Signal()
	}
	return true
}
