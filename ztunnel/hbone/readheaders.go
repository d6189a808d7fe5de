// SPDX-License-Identifier: Apache-2.0

package hbone

import "io"

// headers handles a HEADERS frame (RFC 9113, section 6.2).
func (r *reader) headers(h frameHeader) error {
	if h.stream%2 == 0 {
		return connErrorf(CodeProtocol, "HEADERS on stream %d", h.stream)
	}
	n, pad, err := r.padding(h)
	if err != nil {
		return err
	}
	if h.has(flagPriority) {
		if n < 5 {
			return connErrorf(CodeFrameSize, "HEADERS of %d bytes with priority", h.length)
		}
		if err := r.skip(5); err != nil {
			return err
		}
		n -= 5
	}
	r.open, r.inBlock = h, true
	if err := r.fragment(n); err != nil {
		return err
	}
	if err := r.skip(pad); err != nil {
		return err
	}
	return r.blockDone(h)
}

func (r *reader) continuation(h frameHeader) error {
	if !r.inBlock {
		return connErrorf(CodeProtocol, "CONTINUATION outside a header block")
	}
	if err := r.fragment(h.length); err != nil {
		return err
	}
	return r.blockDone(h)
}

// fragment reads n bytes of a header block, unless that is more than any block may have.
func (r *reader) fragment(n int) error {
	if n > r.hdec.maxList*blockPerList {
		return connErrorf(CodeEnhanceYourCalm, "header block of %d bytes", n)
	}
	b := newBlock(n)
	defer b.free()
	if _, err := io.ReadFull(r.c.rw, b.b[:n]); err != nil {
		return err
	}
	return r.hdec.add(b.b[:n])
}

func (r *reader) blockDone(h frameHeader) error {
	if !h.has(flagEndHeaders) {
		return nil
	}
	r.inBlock = false
	block, err := r.hdec.decode()
	if err != nil {
		return err
	}
	if r.c.client {
		return r.response(block)
	}
	return r.request(block)
}

// response handles the header block of a response.
func (r *reader) response(b *headerBlock) error {
	s := r.c.lookup(r.open.stream)
	if s == nil {
		if r.idle(r.open.stream) {
			return connErrorf(CodeProtocol, "HEADERS on idle stream %d", r.open.stream)
		}
		return r.flood.spend(1)
	}
	if s.answered() {
		// RFC 9113, section 8.5: no frames but DATA and stream management on a connected stream.
		return r.fault(s, CodeProtocol, "HEADERS on a connected stream")
	}
	status, malformed := b.checkResponse()
	end := r.open.has(flagEndStream)
	switch {
	case malformed != "":
		return r.fault(s, CodeProtocol, "%s", malformed)
	case status < 200 && end:
		return r.fault(s, CodeProtocol, "status %d ends the stream", status)
	case status < 200:
		return r.flood.spend(1)
	}
	if s.answer(status, b.fields, end) {
		r.c.forget(s)
	}
	return nil
}

// request handles the header block of a request.
func (r *reader) request(b *headerBlock) error {
	c, id := r.c, r.open.stream
	c.mu.Lock()
	if id <= c.lastID {
		old := c.streams[id]
		c.mu.Unlock()
		switch {
		case old != nil:
			return r.fault(old, CodeProtocol, "HEADERS on an open stream")
		case r.recent.contains(id):
			return r.flood.spend(1)
		}
		return connErrorf(CodeStreamClosed, "HEADERS on closed stream %d", id)
	}
	c.lastID = id
	status, malformed := b.checkRequest()
	refuse := len(c.streams) >= int(c.maxStreams) || id > c.refuseAbove || c.drain >= drainFinal || c.err != nil ||
		c.serving.Load() >= 2*int64(c.maxStreams)
	if refuse || malformed != "" {
		c.mu.Unlock()
		return r.refuse(id, refuse)
	}
	s := c.newStream(id)
	c.addLocked(s)
	c.mu.Unlock()
	if r.open.has(flagEndStream) {
		s.endRemote()
	}
	if status != 0 {
		_ = s.respond(status, nil, true)
		return r.flood.spend(resetCost)
	}
	c.serve(s, b)
	return nil
}

// refuse answers a request that is not served at all.
func (r *reader) refuse(id uint32, busy bool) error {
	code := CodeProtocol
	if busy {
		code = CodeRefusedStream
	}
	r.recent.add(id)
	r.c.pushControl(appendReset(nil, id, code))
	return r.flood.spend(resetCost)
}
