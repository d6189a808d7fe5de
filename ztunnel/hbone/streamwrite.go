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
		sent, err := s.sendBlock(b, n, false, false)
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
	src := newSource(r, s)
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
	b, err := src.read()
	if b == nil {
		return 0, err
	}
	defer b.free()
	n, werr := s.sendBlock(b, b.w-frameHeaderLen, end && err == io.EOF, src.raw != nil)
	if werr != nil {
		err = werr
	}
	return n, err
}

// sendBlock sends n bytes that lie in b behind room for a frame header, and may overwrite them, and END_STREAM with the
// last of them if end is set. If claimed is set the windows were claimed for all of them; else it waits for the windows.
// The caller holds wlock.
func (s *Stream) sendBlock(b *block, n int, end, claimed bool) (sent int, err error) {
	ours := 0 // of the windows, for bytes not yet sent
	if claimed {
		ours = n
	}
	for sent < n {
		if ours > 0 && !s.maySend() {
			s.unclaim(ours)
			ours = 0
		}
		frameLen := min(n-sent, int(s.c.peerFrame.Load()))
		if ours == 0 {
			if ours, err = s.acquire(frameLen); err != nil {
				return sent, err
			}
		}
		k := min(frameLen, ours)
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
			s.unclaim(ours)
			return sent, err
		}
		s.c.earn()
		sent += k
		if ours -= k; ours == 0 {
			s.c.flow.done(0)
		}
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

// waitWindow returns the stream's window once it is open, without taking from it.
func (s *Stream) waitWindow() (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.waitWindowLocked()
	return s.sendWindow, err
}

func (s *Stream) waitWindowLocked() error {
	for s.sendWindow <= 0 && s.writeErrLocked() == nil {
		s.wcond.Wait()
	}
	return s.writeErrLocked()
}

// acquire takes between 1 and want bytes of both windows and waits for them.
func (s *Stream) acquire(want int) (int, error) {
	s.mu.Lock()
	if err := s.waitWindowLocked(); err != nil {
		s.mu.Unlock()
		return 0, err
	}
	n := min(want, s.sendWindow)
	s.sendWindow -= n
	s.mu.Unlock()
	got := s.c.flow.take(n, s.stopped)
	s.addBack(n - got)
	if got == 0 {
		return 0, s.writeErr()
	}
	return got, nil
}

// claim takes up to n bytes of both windows, 0 if one of them is closed. It does not wait.
func (s *Stream) claim(n int) (int, error) {
	s.mu.Lock()
	err := s.writeErrLocked()
	n = min(n, s.sendWindow)
	if n <= 0 || err != nil {
		s.mu.Unlock()
		return 0, err
	}
	s.sendWindow -= n
	s.mu.Unlock()
	got := s.c.flow.tryTake(n)
	s.addBack(n - got)
	return got, nil
}

// unclaim gives back all that is left of what claim or acquire took, n bytes.
func (s *Stream) unclaim(n int) {
	s.addBack(n)
	s.c.flow.done(n)
}

// giveBack gives back n bytes of what claim or acquire took, and keeps some.
func (s *Stream) giveBack(n int) {
	if n > 0 {
		s.addBack(n)
		s.c.flow.giveBack(n)
	}
}

func (s *Stream) addBack(n int) {
	if n > 0 {
		s.mu.Lock()
		s.sendWindow += n
		s.mu.Unlock()
	}
}

// maySend reports whether what was taken of the windows may be sent: the peer may have lowered the stream's since.
func (s *Stream) maySend() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sendWindow >= 0 && s.writeErrLocked() == nil
}
