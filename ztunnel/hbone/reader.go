// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"errors"
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
	recv    recvWindow // the connection's

	// gather collects DATA of one stream while more of it is already buffered below, see readData.
	gather    *block
	gatherFor *Stream

	recent recentResets
}

func (r *reader) init(c *conn) {
	r.c = c
	r.recv = recvWindow{size: c.windows.Connection, credit: c.windows.Connection}
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
	case h.length > r.c.windows.Frame:
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
