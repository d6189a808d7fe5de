// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"encoding/binary"
	"fmt"
	"io"
)

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
	if err := r.flood.spend(settingsCost * (1 + h.length/6)); err != nil || h.has(flagAck) {
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
	if n < smallUpdate {
		if err := r.spendUpdate(); err != nil {
			return err
		}
	}
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
		return r.flood.spendTenth() // it was on its way when the stream ended
	}
	if n == 0 {
		return r.fault(s, CodeProtocol, "WINDOW_UPDATE of 0")
	}
	if !s.addSendWindow(n) {
		return r.fault(s, CodeFlowControl, "window overflow")
	}
	return nil
}

// spendUpdate pays for a small update, for which DATA frames may have paid most.
func (r *reader) spendUpdate() error {
	if r.c.earned.Load() <= 0 {
		return r.flood.spend(1)
	}
	r.c.earned.Add(-1) // Nobody else takes any.
	return r.flood.spendTenth()
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
