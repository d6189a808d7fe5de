// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// connConfig is what the two ends set differently.
type connConfig struct {
	client       bool
	pingInterval time.Duration // 0 or less: no keepalive
	pingTimeout  time.Duration
	maxStreams   uint32 // server: concurrent streams of the peer
	windows      Windows
	memory       Memory // nil: no limit
	stats        *counters

	// handle serves a new stream of the peer, in its own goroutine.
	handle func(*Stream, *headerBlock)
	// abort ends the contexts of all handlers.
	abort context.CancelCauseFunc
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
	rw     io.ReadWriteCloser // crypto/tls, above wire
	wire   *wire
	state  tls.ConnectionState
	w      writer
	henc   headerEncoder // guarded by w.qmu
	flow   sendWindow
	earned atomic.Int64 // small updates that the DATA frames which the peer got have paid for
	ping   keepalive
	in     reader

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

	loans atomic.Int64 // of windowLoans, what is left

	serving  atomic.Int64 // handlers that run
	handlers sync.WaitGroup
	done     chan struct{} // closed when run has returned
}

// newConn prepares a connection whose handshake is over and queues the preface, if any, and SETTINGS.
func newConn(rw io.ReadWriteCloser, w *wire, cfg connConfig) *conn {
	cfg.windows = cfg.windows.filled()
	c := &conn{
		connConfig: cfg, rw: rw, wire: w,
		streams:        make(map[uint32]*Stream),
		peerWindow:     defaultWindow,
		peerMaxFrame:   minMaxFrame,
		peerMaxStreams: 100, // ztunnel's assumption until SETTINGS arrive
		refuseAbove:    maxStreamID,
		done:           make(chan struct{}),
	}
	if cfg.client {
		c.lastID = ^uint32(0) // so that the first stream is 1
	}
	c.w.dst, c.w.wire, c.w.fail = rw, w, c.fail
	c.peerFrame.Store(int32(sendFrameSize(minMaxFrame)))
	c.loans.Store(windowLoans)
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
			uint32(settingInitialWindow), uint32(c.leastWindow()),
			uint32(settingMaxFrameSize), uint32(c.windows.Frame),
			uint32(settingMaxHeaderListSize), ourClientHeaderList)
	} else {
		b = appendSettings(b,
			uint32(settingMaxStreams), c.maxStreams,
			uint32(settingInitialWindow), uint32(c.leastWindow()),
			uint32(settingMaxFrameSize), uint32(c.windows.Frame),
			uint32(settingMaxHeaderListSize), ourServerHeaderList)
	}
	if more := c.windows.Connection - defaultWindow; more > 0 {
		b = appendWindowUpdate(b, 0, uint32(more))
	}
	return b
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

// pushControl queues frames that answer the peer. A peer that reads so little that they pile up loses the connection.
func (c *conn) pushControl(frames []byte) { _ = c.w.push(frames) }

func (c *conn) localAddr() net.Addr  { return c.wire.LocalAddr() }
func (c *conn) remoteAddr() net.Addr { return c.wire.RemoteAddr() }
