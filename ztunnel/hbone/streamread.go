// SPDX-License-Identifier: Apache-2.0

package hbone

import "io"

// receive accounts for a DATA frame of n bytes. Any code but NO_ERROR is what to reset the stream with.
func (s *Stream) receive(n int) ErrCode {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.remoteEnd:
		return CodeStreamClosed
	case s.c.client && !s.responded:
		return CodeProtocol
	case !s.recv.receive(n):
		return CodeFlowControl
	}
	return CodeNo
}

// deliver takes ownership of b, which holds received data.
func (s *Stream) deliver(b *block) {
	s.mu.Lock()
	if s.direct.takesLocked(s, b) {
		s.mu.Unlock()
		n, err := s.direct.write(b.data())
		b.r += n
		s.mu.Lock()
		s.direct.writing, s.direct.err = false, err
		if err != nil || b.len() == 0 || !s.alive() {
			s.wakeReaderLocked() // what waited for this write, or takes the error
			s.mu.Unlock()
			b.free()
			s.consumed(n)
			return
		}
		defer s.consumed(n)
	}
	if s.dead.Load() {
		s.mu.Unlock()
		b.free()
		return
	}
	n := b.len()
	if s.tail != nil && n <= pageBlock && n <= s.tail.room() {
		// The reader is behind. Many small frames must not hold a block each.
		s.tail.append(b.data())
		s.mu.Unlock()
		b.free()
		return
	}
	b.next = nil
	if s.tail == nil {
		s.head = b
	} else {
		s.tail.next = b
	}
	s.tail = b
	s.wakeReaderLocked()
	s.mu.Unlock()
}

// behind reports whether the reader has not taken all there is.
func (s *Stream) behind() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.head != nil
}

// waitData returns with mu held: there is data, or the error says what there is instead.
func (s *Stream) waitData() error {
	s.mu.Lock()
	for s.head == nil {
		if err := s.endLocked(); err != nil {
			return err
		}
		if s.rdl.passed() {
			return errDeadline
		}
		s.rcond.Wait()
	}
	if s.rdl.passed() {
		return errDeadline
	}
	return nil
}

// endLocked says why no more data follows what is queued, nil if more may.
func (s *Stream) endLocked() error {
	switch {
	case s.direct.err != nil:
		return s.direct.err
	case s.rerr != nil:
		return s.rerr
	case s.remoteEnd:
		return io.EOF
	}
	return nil
}

// popLocked takes the first block out of the queue.
func (s *Stream) popLocked() *block {
	b := s.head
	s.head = b.next
	if s.head == nil {
		s.tail = nil
	}
	return b
}

// Read implements [io.Reader].
func (s *Stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := s.waitData(); err != nil {
		s.mu.Unlock()
		return 0, err
	}
	var done *block
	n := 0
	for n < len(p) && s.head != nil {
		b := s.head
		m := copy(p[n:], b.data())
		n += m
		b.r += m
		if b.len() == 0 {
			s.popLocked()
			b.next, done = done, b
		}
	}
	s.mu.Unlock()
	freeAll(done)
	s.consumed(n)
	return n, nil
}

// WriteTo implements [io.WriterTo]: each write passes on all that one block holds, without copying it.
func (s *Stream) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for {
		n, err := s.writeBlock(w)
		total += int64(n)
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// writeBlock writes the next block to w; io.EOF means that the stream has ended.
func (s *Stream) writeBlock(w io.Writer) (int, error) {
	if err := s.waitData(); err != nil {
		s.mu.Unlock()
		return 0, err
	}
	b := s.popLocked()
	s.mu.Unlock()
	return s.pass(b, w)
}

// pass writes b, which it frees, to w.
func (s *Stream) pass(b *block, w io.Writer) (int, error) {
	size := b.len()
	n, err := w.Write(b.data())
	b.free()
	s.consumed(size)
	if err == nil && n < size {
		err = io.ErrShortWrite
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF // of w: not the end of the stream
	}
	return n, err
}

// consumed gives n bytes back to the peer's window, in batches. The window of a stream whose reader keeps up grows, if
// there is memory; if memory is short it shrinks.
func (s *Stream) consumed(n int) {
	s.mu.Lock()
	inc := s.recv.consume(n)
	if s.remoteEnd || s.dead.Load() {
		inc = 0
	}
	if inc > 0 {
		inc = s.adjustLocked(inc)
	}
	s.mu.Unlock()
	if inc > 0 {
		s.c.pushControl(appendWindowUpdate(nil, s.id, uint32(inc)))
	}
}
