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

// connConfig is what the two ends set differently.
type connConfig struct {
	client       bool
	pingInterval time.Duration // 0 or less: no keepalive
	pingTimeout  time.Duration
	maxStreams   uint32 // server: concurrent streams of the peer
	stats        *counters

	// handle serves a new stream of the peer, in its own goroutine.
	handle func(*Stream, *headerBlock)
	// ended is called without locks after a stream of this end left the connection.
	ended func()
}

// conn is one HTTP/2 connection, either end.
//
//	read loop (run): frames in, never waits for a write
//	writer:          frames out, whoever has one
//	keepalive:       a timer
//
// Lock order: writer.qmu, then mu, then Stream.mu.
type conn struct {
	connConfig
	rw    io.ReadWriteCloser // crypto/tls, above wire
	wire  *wire
	state tls.ConnectionState
	w     writer
	henc  headerEncoder // guarded by w.qmu
	flow  sendWindow
	ping  keepalive
	in    reader

	peerFrame atomic.Int32 // payload of the largest DATA frame to send

	mu             sync.Mutex
	streams        map[uint32]*Stream
	lastID         uint32 // client: the last stream opened; server: the highest the peer opened
	peerWindow     int    // initial window of a new stream
	peerMaxFrame   int
	peerMaxStreams uint32
	refuseAbove    uint32 // server: what the final GOAWAY promised
	drain          drainState
	goAway         *ConnError // received
	err            error      // why the connection ended

	recvMu sync.Mutex
	recv   recvWindow

	serving  atomic.Int64 // handlers that run
	handlers sync.WaitGroup
	done     chan struct{} // closed when run has returned
}

// newConn prepares a connection whose handshake is over and queues the preface, if any, and SETTINGS.
func newConn(rw io.ReadWriteCloser, w *wire, cfg connConfig) *conn {
	c := &conn{
		connConfig: cfg, rw: rw, wire: w,
		streams:        make(map[uint32]*Stream),
		peerWindow:     defaultWindow,
		peerMaxFrame:   minMaxFrame,
		peerMaxStreams: 100, // ztunnel's assumption until SETTINGS arrive
		refuseAbove:    maxStreamID,
		recv:           recvWindow{size: ourConnWindow, credit: ourConnWindow},
		done:           make(chan struct{}),
	}
	if cfg.client {
		c.lastID = ^uint32(0) // so that the first stream is 1
	}
	c.w.dst, c.w.wire, c.w.fail = rw, w, c.fail
	c.peerFrame.Store(int32(sendFrameSize(minMaxFrame)))
	c.flow.init()
	c.henc.init()
	c.in.init(c)
	w.beforeBlock = c.in.settle
	w.buffer()
	c.w.queueFirst(c.preface())
	return c
}

// queueFirst queues the preface before anybody else knows the connection.
func (w *writer) queueFirst(frames []byte) {
	w.qmu.Lock()
	defer w.qmu.Unlock()
	_ = w.pushLocked(frames)
}

func (c *conn) preface() []byte {
	var b []byte
	if c.client {
		b = append(b, clientPreface...)
		b = appendSettings(b,
			uint32(settingEnablePush), 0,
			uint32(settingInitialWindow), ourStreamWindow,
			uint32(settingMaxFrameSize), ourMaxFrame,
			uint32(settingMaxHeaderListSize), ourClientHeaderList)
	} else {
		b = appendSettings(b,
			uint32(settingMaxStreams), c.maxStreams,
			uint32(settingInitialWindow), ourStreamWindow,
			uint32(settingMaxFrameSize), ourMaxFrame,
			uint32(settingMaxHeaderListSize), ourServerHeaderList)
	}
	return appendWindowUpdate(b, 0, ourConnWindow-defaultWindow)
}

// run reads frames until the connection ends and returns why; nil if both ends were done with it.
func (c *conn) run() error {
	defer close(c.done)
	c.stats.conns.Add(1)
	c.stats.connsTotal.Add(1)
	defer c.stats.conns.Add(-1)
	c.w.kick()
	c.ping.start(c)
	defer c.ping.stop()

	err := c.in.frames()
	c.fail(err)
	return c.end()
}

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

// kill ends the connection without another word.
func (c *conn) kill(err error) {
	c.fail(err)
	_ = c.wire.Conn.SetWriteDeadline(time.Now())
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

	for _, s := range streams {
		s.cut(err, err, false)
		c.streamEnded(s)
	}
	c.in.drop()
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

// lookup returns the open stream with this id, or nil.
func (c *conn) lookup(id uint32) *Stream {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.streams[id]
}

// forget takes a stream that is over on the wire out of the connection.
func (c *conn) forget(s *Stream) {
	c.mu.Lock()
	if c.streams[s.id] != s {
		c.mu.Unlock()
		return
	}
	delete(c.streams, s.id)
	idle := len(c.streams) == 0
	last := idle && c.lastStreamLocked()
	c.mu.Unlock()
	c.streamEnded(s)
	if last {
		c.closeSoon()
	}
}

func (c *conn) streamEnded(s *Stream) {
	c.stats.streams.Add(-1)
	if s.cancel != nil {
		s.cancel()
	}
	if c.ended != nil {
		c.ended()
	}
}

// addLocked makes s a stream of the connection.
func (c *conn) addLocked(s *Stream) {
	c.streams[s.id] = s
	c.stats.streams.Add(1)
	c.stats.streamsTotal.Add(1)
}

// resetStream sends RST_STREAM for s and forgets it.
func (c *conn) resetStream(s *Stream, code ErrCode, reason string) {
	err := &StreamError{Code: code, reason: reason}
	if !s.cut(err, err, true) {
		return
	}
	c.in.recent.add(s.id)
	_ = c.w.push(appendReset(nil, s.id, code))
	c.forget(s)
}

// giveBack returns n bytes of the connection's receive window.
func (c *conn) giveBack(n int) {
	c.recvMu.Lock()
	inc := c.recv.consume(n)
	c.recvMu.Unlock()
	if inc > 0 {
		c.pushControl(appendWindowUpdate(nil, 0, uint32(inc)))
	}
}

// pushControl queues frames that answer the peer. A peer that reads so little that they pile up loses the connection.
func (c *conn) pushControl(frames []byte) {
	if err := c.w.push(frames); err != nil {
		c.fail(connErrorf(CodeEnhanceYourCalm, "%v", err))
	}
}

func (c *conn) localAddr() net.Addr  { return c.wire.LocalAddr() }
func (c *conn) remoteAddr() net.Addr { return c.wire.RemoteAddr() }
