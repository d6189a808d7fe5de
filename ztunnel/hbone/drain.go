// SPDX-License-Identifier: Apache-2.0

package hbone

import "time"

// drainState is how far a connection is on its way out.
//
//	server: open ─Shutdown─► announced ─PONG─► final ─no streams─► (client closes, or lingerTime) closing
//	client: open ─retire─► final ─no streams─► closing
type drainState uint8

const (
	drainNone      drainState = iota
	drainAnnounced            // GOAWAY(2^31-1) sent: the peer should stop, what is on its way is served
	drainFinal                // no new streams
	drainClosing              // GOAWAY and FIN sent
)

var drainPing = [8]byte{'s', 'l', 'u', 'i', 'c', 'e', 'd', 'r'}

// startDrain begins a graceful end in two steps (RFC 9113, section 6.8): the PING's answer proves that the peer has read
// the first GOAWAY, so all requests that it sent before have arrived by then.
func (c *conn) startDrain() {
	c.mu.Lock()
	begin := c.drain == drainNone && c.err == nil
	if begin {
		c.drain = drainAnnounced
	}
	c.mu.Unlock()
	if !begin {
		return
	}
	frames := appendGoAway(nil, maxStreamID, CodeNo, "")
	_ = c.w.push(appendPing(frames, 0, drainPing))
	time.AfterFunc(closeTime, c.finalGoAway) // for a peer that never answers
}

// finalGoAway refuses further streams.
func (c *conn) finalGoAway() {
	c.w.qmu.Lock()
	c.mu.Lock()
	begin := c.drain == drainAnnounced && c.err == nil
	if begin {
		c.drain = drainFinal
		c.refuseAbove = c.lastID
		_ = c.w.pushLocked(appendGoAway(nil, c.lastID, CodeNo, ""))
	}
	idle := begin && len(c.streams) == 0
	c.mu.Unlock()
	c.w.qmu.Unlock()
	c.w.kick()
	if idle {
		c.closeSoon()
	}
}

// retire makes a client connection end with its last stream.
func (c *conn) retire() {
	c.mu.Lock()
	if c.drain == drainNone {
		c.drain = drainFinal
	}
	idle := len(c.streams) == 0
	c.mu.Unlock()
	if idle {
		c.closeGently()
	}
}

// lastStreamLocked reports whether the connection should end now that it has no streams.
func (c *conn) lastStreamLocked() bool {
	return c.drain == drainFinal || (c.client && c.goAway != nil)
}

// closeSoon closes a connection that is done. A server leaves the first move to the client, which has been told.
func (c *conn) closeSoon() {
	if c.client {
		c.closeGently()
		return
	}
	time.AfterFunc(lingerTime, c.closeGently)
}

// turnAway makes a connection that has not begun refuse all streams, so that the client tries another at once.
func (c *conn) turnAway() {
	c.drain, c.refuseAbove = drainFinal, 0
	c.w.queueFirst(appendGoAway(nil, 0, CodeNo, ""))
	c.closeSoon()
}
