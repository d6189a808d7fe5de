// SPDX-License-Identifier: Apache-2.0

package hbone

import "io"

// Write implements [io.Writer]. It returns when the data is on its way and waits only for the peer's windows and for the
// connection.
func (s *Stream) Write(p []byte) (int, error) {
	s.wlock.Lock()
	defer s.wlock.Unlock()
	total := 0
	for len(p) > 0 {
		n := min(len(p), maxSendFrame)
		b := newBlock(frameHeaderLen + n)
		copy(b.b[frameHeaderLen:], p[:n])
		sent, err := s.sendBlock(b, n, false)
		b.free()
		total += sent
		if err != nil {
			return total, err
		}
		p = p[n:]
	}
	return total, nil
}

// ReadFrom implements [io.ReaderFrom]: it reads ahead only when the peer has given window, into the block that becomes
// the DATA frame.
func (s *Stream) ReadFrom(r io.Reader) (int64, error) {
	s.wlock.Lock()
	defer s.wlock.Unlock()
	src := newSource(r)
	var total int64
	for {
		n, err := s.readBlock(src, false)
		total += int64(n)
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// readBlock moves one block from src; io.EOF means that src has ended, and if end is set that END_STREAM may have been sent
// with the last data. The caller holds wlock.
func (s *Stream) readBlock(src *source, end bool) (int, error) {
	window, err := s.waitWindow()
	if err != nil {
		return 0, err
	}
	b, err := src.read(min(window, maxSendFrame))
	if b == nil {
		return 0, err
	}
	defer b.free()
	n, werr := s.sendBlock(b, b.w-frameHeaderLen, end && err == io.EOF)
	if werr != nil {
		err = werr
	}
	return n, err
}

// sendBlock sends n bytes that lie in b behind room for a frame header, and may overwrite them, and END_STREAM with the
// last of them if end is set. The caller holds wlock.
func (s *Stream) sendBlock(b *block, n int, end bool) (sent int, err error) {
	for sent < n {
		k, err := s.acquire(n - sent)
		if err != nil {
			return sent, err
		}
		// The header goes over the last bytes of the part before, which has been sent: header and data make whole TLS
		// records, and nothing is copied to make room.
		frame := b.b[sent : sent+frameHeaderLen+k]
		h := frameHeader{length: k, typ: frameData, stream: s.id}
		if end && sent+k == n {
			err = s.sendEnd(h, frame)
		} else if h.put(frame); !s.sendFrame(frame, s.alive) {
			err = s.writeErr()
		}
		if err != nil {
			s.c.flow.add(k)
			return sent, err
		}
		sent += k
	}
	return sent, nil
}

// sendFrame sends one DATA frame, or returns false if ok does, which is asked when the frame's turn has come.
func (s *Stream) sendFrame(frame []byte, ok func() bool) bool {
	w := &s.c.w
	if len(frame) <= smallFrame {
		if pushed, valid := w.tryPush(frame, ok); !valid {
			return false
		} else if pushed {
			w.send()
			return true
		}
	}
	return w.write(frame, ok)
}

func (s *Stream) writeErr() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.writeErrLocked()
}

func (s *Stream) writeErrLocked() error {
	switch {
	case s.werr != nil:
		return s.werr
	case s.localEnd:
		return errWriteClosed
	case s.wdl.passed():
		return errDeadline
	}
	return nil
}

// stopped reports whether a writer must give up waiting.
func (s *Stream) stopped() bool { return s.writeErr() != nil }

// waitWindow returns the stream's window once both windows are open, without taking from them.
func (s *Stream) waitWindow() (int, error) {
	s.mu.Lock()
	for s.sendWindow <= 0 && s.writeErrLocked() == nil {
		s.wcond.Wait()
	}
	n, err := s.sendWindow, s.writeErrLocked()
	s.mu.Unlock()
	if err != nil {
		return 0, err
	}
	s.c.flow.wait(s.stopped)
	return n, nil
}

// acquire takes between 1 and want bytes of both windows, at most one frame's worth.
func (s *Stream) acquire(want int) (int, error) {
	s.mu.Lock()
	for s.sendWindow <= 0 && s.writeErrLocked() == nil {
		s.wcond.Wait()
	}
	if err := s.writeErrLocked(); err != nil {
		s.mu.Unlock()
		return 0, err
	}
	n := min(want, s.sendWindow, int(s.c.peerFrame.Load()))
	s.sendWindow -= n
	s.mu.Unlock()

	got := s.c.flow.take(n, s.stopped)
	if got < n {
		s.mu.Lock()
		s.sendWindow += n - got
		s.mu.Unlock()
	}
	if got == 0 {
		return 0, s.writeErr()
	}
	return got, nil
}
