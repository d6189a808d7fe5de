// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"io"
	"net"
	"os"
	"syscall"
)

// source reads blocks with room for a frame header in front. From a TCP connection it takes a block only once there is
// something to read and the peer takes it, so that nobody who waits holds one; from other readers it reads into one that it
// keeps meanwhile.
type source struct {
	r   io.Reader
	raw syscall.RawConn // nil unless r is a TCP connection: what was read is claimed then
	try func(fd uintptr) bool
	to  *Stream

	claimed int // of the windows of to, for what there is to read
	block   *block
	err     error

	// ended, if set, says what an end of data is: io.EOF, or an error that looks like one.
	ended func() error
}

func newSource(r io.Reader, to *Stream) *source {
	s := &source{r: r, to: to}
	if tcp, ok := r.(*net.TCPConn); ok {
		if raw, err := tcp.SyscallConn(); err == nil {
			s.raw, s.try = raw, s.tryRead
		}
	}
	return s
}

// read returns a block whose data begins after room for a frame header, or nil and an error. The block is the caller's; an
// error may come with it. What a TCP connection's block holds was taken of the stream's windows.
func (s *source) read() (*block, error) {
	if s.raw == nil {
		window, err := s.to.waitWindow()
		if err != nil {
			return nil, err
		}
		return s.readPlain(min(window, pageBlock-frameHeaderLen))
	}
	for {
		s.block, s.err = nil, nil
		err := s.raw.Read(s.try)
		if s.claimed > 0 { // and not tried
			s.to.unclaim(s.claimed)
			s.claimed = 0
		}
		if err != nil {
			return nil, err
		}
		if s.block != nil || s.err != nil {
			return s.block, s.err
		}
		// There is something, but a window is closed.
		if s.claimed, err = s.to.acquire(maxSendFrame); err != nil {
			return nil, err
		}
	}
}

// tryRead makes one attempt; false makes the poller wait for readability and try again. If a window is closed it leaves
// both block and error alone, once there is data.
func (s *source) tryRead(fd uintptr) bool {
	claimed := s.claimed
	s.claimed = 0
	if claimed == 0 {
		if claimed, s.err = s.to.claim(maxSendFrame); s.err != nil {
			return true
		}
	}
	if claimed == 0 {
		return s.look(fd)
	}
	b := newBlock(frameHeaderLen + claimed)
	room := b.b[frameHeaderLen : frameHeaderLen+claimed]
	n, err := readFD(fd, room)
	if n > 0 {
		if err == nil {
			var m int
			// Whoever answers and closes does both at once: looking again costs less than a frame for the end alone.
			m, err = readFD(fd, room[n:])
			if m == 0 && err == nil && n < len(room) {
				s.err = s.end()
			}
			n += m
		}
		if err != nil && err != syscall.EAGAIN {
			s.err = os.NewSyscallError("read", err)
		}
		s.to.giveBack(claimed - n)
		b.w = frameHeaderLen + n
		s.block = b
		return true
	}
	s.to.unclaim(claimed)
	b.free()
	return s.nothing(err)
}

// look finds out whether there is data, without taking any. An end of it needs no window.
func (s *source) look(fd uintptr) bool {
	n, err := peekFD(fd)
	return n > 0 || s.nothing(err)
}

// nothing takes what a call without data says. It reports whether that is all there will be.
func (s *source) nothing(err error) bool {
	switch err {
	case syscall.EAGAIN:
		return false
	case nil:
		s.err = s.end()
	default:
		s.err = os.NewSyscallError("read", err)
	}
	return true
}

func (s *source) end() error {
	if s.ended == nil {
		return io.EOF
	}
	return s.ended()
}

func (s *source) readPlain(limit int) (*block, error) {
	b := newBlock(frameHeaderLen + limit)
	n, err := s.r.Read(b.b[frameHeaderLen : frameHeaderLen+limit])
	if n > 0 {
		b.w = frameHeaderLen + n
		return b, err
	}
	b.free()
	if err == nil {
		err = io.ErrNoProgress
	}
	return nil, err
}
