// SPDX-License-Identifier: Apache-2.0

package hbone

// data handles a DATA frame (RFC 9113, section 6.1).
func (r *reader) data(h frameHeader) error {
	if h.stream == 0 {
		return connErrorf(CodeProtocol, "DATA on stream 0")
	}
	if !r.recv.receive(h.length) {
		return connErrorf(CodeFlowControl, "connection window exceeded")
	}
	if inc := r.recv.consume(h.length); inc > 0 {
		r.c.pushControl(appendWindowUpdate(nil, 0, uint32(inc)))
	}
	if h.length == 0 && !h.has(flagEndStream) {
		if err := r.flood.spend(1); err != nil {
			return err
		}
	}
	n, pad, err := r.padding(h)
	if err != nil {
		return err
	}
	s, err := r.dataStream(h)
	if err != nil {
		return err
	}
	if s == nil {
		return r.skip(n + pad)
	}
	if err := r.readData(s, n); err != nil {
		return err
	}
	if overhead := h.length - n; overhead > 0 {
		s.consumed(overhead)
		if err := r.skip(pad); err != nil {
			return err
		}
	}
	if h.has(flagEndStream) {
		r.commit()
		if s.endRemote() {
			r.c.forget(s)
		}
	}
	return nil
}

// padding returns the lengths of data and padding.
func (r *reader) padding(h frameHeader) (n, pad int, err error) {
	if !h.has(flagPadded) {
		return h.length, 0, nil
	}
	if h.length == 0 {
		return 0, 0, connErrorf(CodeFrameSize, "padded frame of 0 bytes")
	}
	if err := r.readByte(&pad); err != nil {
		return 0, 0, err
	}
	n = h.length - 1 - pad
	if n < 0 {
		return 0, 0, connErrorf(CodeProtocol, "padding of %d in a frame of %d", pad, h.length)
	}
	return n, pad, nil
}

func (r *reader) readByte(out *int) error {
	for {
		n, err := r.c.rw.Read(r.scratch[:1])
		if n == 1 {
			*out = int(r.scratch[0])
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// dataStream returns the stream a DATA frame is for, nil if the frame is to be skipped.
func (r *reader) dataStream(h frameHeader) (*Stream, error) {
	s := r.c.lookup(h.stream)
	if s == nil {
		if r.idle(h.stream) {
			return nil, connErrorf(CodeProtocol, "DATA on idle stream %d", h.stream)
		}
		if !r.recent.contains(h.stream) {
			r.c.pushControl(appendReset(nil, h.stream, CodeStreamClosed))
			return nil, r.flood.spend(1)
		}
		return nil, nil
	}
	switch s.receive(h.length) {
	case CodeNo:
		return s, nil
	case CodeStreamClosed:
		return nil, r.fault(s, CodeStreamClosed, "DATA after END_STREAM")
	case CodeProtocol:
		return nil, r.fault(s, CodeProtocol, "DATA before the response")
	default:
		return nil, r.fault(s, CodeFlowControl, "stream window exceeded")
	}
}

// readData reads n bytes of data for s, straight from crypto/tls into the block that the application will be given.
// The block is handed over when it is full or when nothing more is buffered, so one wake-up and one write to the
// application carry as much as has arrived, and nothing waits for what has not.
func (r *reader) readData(s *Stream, n int) error {
	for n > 0 {
		if r.gather == nil {
			r.gather = newBlock(min(max(n, r.c.wire.waiting()), midBlock))
			r.gatherFor = s
		}
		g := r.gather
		m, err := r.c.rw.Read(g.b[g.w:min(len(g.b), g.w+n)])
		g.w += m
		n -= m
		if g.room() == 0 || !r.c.wire.ready() {
			r.commit()
		}
		if err != nil && n > 0 {
			return err
		}
	}
	return nil
}

// commit hands what was gathered to its stream.
func (r *reader) commit() {
	g := r.gather
	if g == nil {
		return
	}
	if g.len() == 0 {
		g.free()
		r.gather, r.gatherFor = nil, nil
		return
	}
	s := r.gatherFor
	if g.len() > pageBlock && !s.behind() {
		s.deliver(g) // its reader takes it at once: a copy would save nothing
	} else if fit, copied := g.fitted(); copied {
		s.deliver(fit)
		g.free()
	} else {
		s.deliver(g)
	}
	r.gather, r.gatherFor = nil, nil
}

// settle hands over what was gathered when the loop has to wait after all, which happens when the records that looked
// like more data were something else, such as a key update. A Read of crypto/tls may be about to fill the rest of the
// block, so it is a copy that is handed over.
func (r *reader) settle() {
	g := r.gather
	if g == nil || g.len() == 0 {
		return
	}
	fit := newBlock(g.len())
	fit.append(g.data())
	g.r = g.w
	r.gatherFor.deliver(fit)
}

// drop frees what was gathered when the connection ends.
func (r *reader) drop() {
	r.commit()
}
