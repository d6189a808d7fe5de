// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"errors"
	"io"
	"time"
)

const (
	// lastWords bounds what is spent on telling a peer why its connection ends.
	lastWords = 250 * time.Millisecond
	// lingerTime bounds the wait for a peer that was told that no more streams come.
	lingerTime = time.Second
	// closeTime bounds the wait for the last bytes of a connection to be taken by the peer.
	closeTime = 20 * time.Second
)

// errDone ends a connection that both ends have finished with.
var errDone = errors.New("connection closed")

// fail records why the connection ends and unblocks the read loop, which does the rest. Only the first call counts.
func (c *conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = err
	now := time.Now()
	_ = c.wire.Conn.SetReadDeadline(now)
	_ = c.wire.Conn.SetWriteDeadline(now.Add(lastWords))
}

// kill ends the connection without another word. Closing wakes writers too that the deadline of their own layer does
// not reach, when the connection is a Stream inside another.
func (c *conn) kill(err error) {
	c.fail(err)
	_ = c.wire.Conn.SetWriteDeadline(time.Now())
	_ = c.wire.Conn.Close()
	if c.abort != nil {
		c.abort(err)
	}
}

// end tells the peer, fails every stream and closes. It is called once, by the read loop.
func (c *conn) end() error {
	c.mu.Lock()
	err := c.err
	if errors.Is(err, io.EOF) && c.busyLocked() {
		err = io.ErrUnexpectedEOF
	}
	if c.goAway != nil && c.goAway.Code != CodeNo {
		err = c.goAway
	}
	if c.drain == drainClosing && !c.busyLocked() {
		err = errDone
	}
	c.err = err
	last := c.lastID
	streams := c.streams
	c.streams = nil
	c.mu.Unlock()

	c.in.drop() // what has arrived comes before what ended it
	for _, s := range streams {
		s.cut(err, err, false)
		c.streamEnded(s)
	}
	c.farewell(err, last)
	if errors.Is(err, errDone) || errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// busyLocked reports whether a stream is still open. One that has just ended both ways may not have been forgotten yet.
func (c *conn) busyLocked() bool {
	for _, s := range c.streams {
		if !s.over() {
			return true
		}
	}
	return false
}

// farewell sends what is queued and GOAWAY, and closes. If the peer is at fault it also reads on for a moment: closing
// with unread data would reset the connection, and the peer would never learn why.
func (c *conn) farewell(err error, last uint32) {
	var ce *ConnError
	fault := errors.As(err, &ce) && !ce.Remote
	if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		if c.client {
			last = 0
		}
		code, why := CodeNo, ""
		if fault {
			code, why = ce.Code, ce.reason
		}
		_ = c.w.push(appendGoAway(nil, last, code, why))
	}
	c.w.finish()
	if fault && c.wire.closeWrite() == nil {
		_ = c.wire.Conn.SetReadDeadline(time.Now().Add(lastWords))
		_, _ = io.Copy(io.Discard, io.LimitReader(c.wire.Conn, 1<<20))
	}
	_ = c.rw.Close()
	c.wire.drop()
}

// closeGently closes a connection that has no streams left: GOAWAY, TLS close_notify, FIN, and then the read loop waits
// for the peer's own end, so that nothing sent is lost to a reset.
func (c *conn) closeGently() {
	c.mu.Lock()
	last := c.lastID
	if c.client {
		last = 0
	}
	if c.drain == drainClosing || c.err != nil {
		c.mu.Unlock()
		return
	}
	c.drain = drainClosing
	_ = c.wire.Conn.SetDeadline(time.Now().Add(closeTime))
	c.mu.Unlock()

	c.w.qmu.Lock()
	defer c.w.qmu.Unlock()
	if c.w.closed {
		return
	}
	_ = c.w.pushLocked(appendGoAway(nil, last, CodeNo, ""))
	c.w.closed = true
	c.w.wg.Add(1)
	go c.sendLast()
}

func (c *conn) sendLast() {
	defer c.w.wg.Done()
	c.w.lock.Lock()
	err := c.w.drain()
	if cw, ok := c.rw.(interface{ CloseWrite() error }); ok && err == nil {
		err = cw.CloseWrite()
	}
	if err == nil {
		err = c.wire.flush()
	}
	c.w.lock.Unlock()
	if err == nil {
		err = c.wire.closeWrite()
	}
	if err != nil {
		c.fail(errDone)
	}
}
