// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"io"
	"net"
	"os"
	"syscall"
)

// source reads blocks with room for a frame header in front. From a TCP connection it takes a block only once there is
// something to read; from other readers it reads into one that it keeps meanwhile.
type source struct {
	r   io.Reader
	raw syscall.RawConn
	try func(fd uintptr) bool

	limit int
	block *block
	err   error

	// ended, if set, says what an end of data is: io.EOF, or an error that looks like one.
	ended func() error
}

func newSource(r io.Reader) *source {
	s := &source{r: r}
	if tcp, ok := r.(*net.TCPConn); ok {
		if raw, err := tcp.SyscallConn(); err == nil {
			s.raw, s.try = raw, s.tryRead
		}
	}
	return s
}

// read returns a block whose data begins after room for a frame header, at most limit bytes, or nil and an error. The
// block is the caller's; an error may come with it.
func (s *source) read(limit int) (*block, error) {
	if s.raw == nil {
		return s.readPlain(min(limit, pageBlock-frameHeaderLen))
	}
	s.limit, s.block, s.err = limit, nil, nil
	if err := s.raw.Read(s.try); err != nil {
		return nil, err
	}
	return s.block, s.err
}

// tryRead makes one attempt; false makes the poller wait for readability and try again.
func (s *source) tryRead(fd uintptr) bool {
	b := newBlock(bigBlock)
	room := b.b[frameHeaderLen : frameHeaderLen+s.limit]
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
		b.w = frameHeaderLen + n
		s.block = b
		return true
	}
	b.free()
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
