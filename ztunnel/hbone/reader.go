// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// reader is the read loop of one connection: it checks frames against RFC 9113 and hands them on. It never waits for
// anything but the peer's next bytes. Its fields belong to the loop's goroutine.
type reader struct {
	c       *conn
	hdec    headerDecoder
	open    frameHeader // HEADERS whose CONTINUATION must follow
	inBlock bool
	scratch [64]byte
	flood   budget

	// gather collects DATA of one stream while more of it is already buffered below, see readData.
	gather    *block
	gatherFor *Stream

	recent recentResets
}

func (r *reader) init(c *conn) {
	r.c = c
	if c.client {
		r.hdec.init(ourClientHeaderList)
	} else {
		r.hdec.init(ourServerHeaderList)
	}
}

// errPreface reports a client that does not speak HTTP/2.
var errPreface = connErrorf(CodeProtocol, "no HTTP/2 preface")

// frames reads until the connection ends. The error is io.EOF if it ended between two frames.
func (r *reader) frames() error {
	if !r.c.client {
		preface := r.scratch[:len(clientPreface)]
		if _, err := io.ReadFull(r.c.rw, preface); err != nil {
			return err
		}
		if string(preface) != clientPreface {
			return errPreface
		}
	}
	for first := true; ; first = false {
		h, err := r.header()
		if err != nil {
			return err
		}
		if first && (h.typ != frameSettings || h.has(flagAck)) {
			return connErrorf(CodeProtocol, "first frame is not SETTINGS")
		}
		if err := r.frame(h); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
}

func (r *reader) header() (frameHeader, error) {
	buf := (*[frameHeaderLen]byte)(r.scratch[:])
	if _, err := io.ReadFull(r.c.rw, buf[:]); err != nil {
		return frameHeader{}, err
	}
	h := parseFrameHeader(buf)
	switch {
	case h.length > ourMaxFrame:
		return h, connErrorf(CodeFrameSize, "frame of %d bytes", h.length)
	case r.inBlock && (h.typ != frameContinuation || h.stream != r.open.stream):
		return h, connErrorf(CodeProtocol, "frame of type %d inside a header block", h.typ)
	}
	if r.gather != nil && (h.typ != frameData || h.stream != r.gatherFor.id) {
		r.commit()
	}
	return h, nil
}

// frame handles one frame; an error ends the connection.
func (r *reader) frame(h frameHeader) error {
	switch h.typ {
	case frameData:
		return r.data(h)
	case frameHeaders:
		return r.headers(h)
	case frameContinuation:
		return r.continuation(h)
	case framePriority:
		return r.priority(h)
	case frameRST:
		return r.rst(h)
	case frameSettings:
		return r.settings(h)
	case framePushPromise:
		return connErrorf(CodeProtocol, "PUSH_PROMISE")
	case framePing:
		return r.ping(h)
	case frameGoAway:
		return r.goAway(h)
	case frameWindowUpdate:
		return r.windowUpdate(h)
	}
	// RFC 9113, section 4.1: unknown types are ignored.
	if err := r.flood.spend(1); err != nil {
		return err
	}
	return r.skip(h.length)
}

// fixed reads a payload that has exactly n bytes.
func (r *reader) fixed(h frameHeader, n int) ([]byte, error) {
	if h.length != n {
		return nil, connErrorf(CodeFrameSize, "frame of type %d with %d bytes", h.typ, h.length)
	}
	_, err := io.ReadFull(r.c.rw, r.scratch[:n])
	return r.scratch[:n], err
}

func (r *reader) skip(n int) error {
	if n == 0 {
		return nil
	}
	b := newBlock(min(n, pageBlock))
	defer b.free()
	for n > 0 {
		m, err := r.c.rw.Read(b.b[:min(n, len(b.b))])
		n -= m
		if err != nil && n > 0 {
			return err
		}
	}
	return nil
}

// idle reports whether no stream with this id was ever opened, or could have been.
func (r *reader) idle(id uint32) bool {
	c := r.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if id%2 == 0 {
		return true
	}
	return c.lastID == ^uint32(0) || id > c.lastID
}

func (r *reader) priority(h frameHeader) error {
	if h.stream == 0 {
		return connErrorf(CodeProtocol, "PRIORITY on stream 0")
	}
	if err := r.flood.spend(1); err != nil {
		return err
	}
	if h.length != 5 {
		if s := r.c.lookup(h.stream); s != nil {
			r.c.resetStream(s, CodeFrameSize, "PRIORITY size")
		}
	}
	return r.skip(h.length) // RFC 9113, section 5.3.2: deprecated
}

func (r *reader) ping(h frameHeader) error {
	if h.stream != 0 {
		return connErrorf(CodeProtocol, "PING on stream %d", h.stream)
	}
	p, err := r.fixed(h, 8)
	if err != nil {
		return err
	}
	payload := [8]byte(p)
	if !h.has(flagAck) {
		r.c.pushControl(appendPing(nil, flagAck, payload))
		return r.flood.spend(1)
	}
	switch payload {
	case keepalivePing:
		r.c.ping.pong()
	case drainPing:
		r.c.finalGoAway()
	}
	return r.flood.spend(1)
}

func (r *reader) settings(h frameHeader) error {
	switch {
	case h.stream != 0:
		return connErrorf(CodeProtocol, "SETTINGS on stream %d", h.stream)
	case h.has(flagAck) && h.length != 0, h.length%6 != 0, h.length > 6*64:
		return connErrorf(CodeFrameSize, "SETTINGS of %d bytes", h.length)
	}
	if err := r.flood.spend(settingsCost); err != nil || h.has(flagAck) {
		return err
	}
	for range h.length / 6 {
		p := r.scratch[:6]
		if _, err := io.ReadFull(r.c.rw, p); err != nil {
			return err
		}
		if err := r.c.applySetting(setting(binary.BigEndian.Uint16(p)), binary.BigEndian.Uint32(p[2:])); err != nil {
			return err
		}
	}
	r.c.pushControl(frameHeader{typ: frameSettings, flags: flagAck}.appendTo(nil))
	return nil
}

func (r *reader) windowUpdate(h frameHeader) error {
	p, err := r.fixed(h, 4)
	if err != nil {
		return err
	}
	n := int(binary.BigEndian.Uint32(p) & maxWindow)
	if h.stream == 0 {
		if n == 0 {
			return connErrorf(CodeProtocol, "WINDOW_UPDATE of 0")
		}
		if !r.c.flow.add(n) {
			return connErrorf(CodeFlowControl, "window overflow")
		}
		return nil
	}
	s := r.c.lookup(h.stream)
	if s == nil {
		if r.idle(h.stream) {
			return connErrorf(CodeProtocol, "WINDOW_UPDATE on idle stream %d", h.stream)
		}
		return nil
	}
	if n == 0 {
		return r.fault(s, CodeProtocol, "WINDOW_UPDATE of 0")
	}
	if !s.addSendWindow(n) {
		return r.fault(s, CodeFlowControl, "window overflow")
	}
	return nil
}

// fault resets a stream because of what the peer did on it. Too many of them end the connection: making us reset
// streams is as good an attack as resetting them.
func (r *reader) fault(s *Stream, code ErrCode, format string, args ...any) error {
	r.c.resetStream(s, code, fmt.Sprintf(format, args...))
	return r.flood.spend(resetCost)
}

func (r *reader) rst(h frameHeader) error {
	p, err := r.fixed(h, 4)
	if err != nil {
		return err
	}
	code := ErrCode(binary.BigEndian.Uint32(p))
	s := r.c.lookup(h.stream)
	if s == nil {
		if h.stream == 0 || r.idle(h.stream) {
			return connErrorf(CodeProtocol, "RST_STREAM on idle stream %d", h.stream)
		}
		return r.flood.spend(1)
	}
	early := s.reset(code)
	r.c.forget(s)
	if early && !r.c.client {
		return r.flood.spend(resetCost)
	}
	return nil
}

func (r *reader) goAway(h frameHeader) error {
	if h.stream != 0 {
		return connErrorf(CodeProtocol, "GOAWAY on stream %d", h.stream)
	}
	if h.length < 8 {
		return connErrorf(CodeFrameSize, "GOAWAY of %d bytes", h.length)
	}
	p := r.scratch[:8]
	if _, err := io.ReadFull(r.c.rw, p); err != nil {
		return err
	}
	last := binary.BigEndian.Uint32(p) & maxStreamID
	code := ErrCode(binary.BigEndian.Uint32(p[4:]))
	debug := r.scratch[8 : 8+min(h.length-8, len(r.scratch)-8)]
	if _, err := io.ReadFull(r.c.rw, debug); err != nil {
		return err
	}
	r.c.goneAway(last, &ConnError{Code: code, Remote: true, reason: printable(debug)})
	if err := r.flood.spend(1); err != nil {
		return err
	}
	return r.skip(h.length - 8 - len(debug))
}

// printable makes a peer's debug text fit for a log.
func printable(b []byte) string {
	out := make([]byte, len(b))
	for i, c := range b {
		if c < ' ' || c > '~' {
			c = '?'
		}
		out[i] = c
	}
	return string(out)
}
