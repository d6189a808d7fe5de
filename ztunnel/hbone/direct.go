// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"os"
	"sync/atomic"
	"syscall"
)

// direct lets the read loop pass small data on to the application by itself, while nothing else waits to be passed on.
// That saves waking another goroutine for each request and answer. Big blocks are better written by the stream's own
// goroutine, while the read loop decrypts the next. The read loop never waits: what the socket does not take is queued.
//
// All fields but those of the write itself are guarded by Stream.mu.
type direct struct {
	raw      syscall.RawConn // nil: nothing is passed on directly
	received *atomic.Uint64
	copying  bool  // the stream's own goroutine is writing
	writing  bool  // the read loop is writing
	err      error // why the application took no more

	// The write under way belongs to the read loop.
	try func(fd uintptr) bool
	p   []byte
	n   int
	no  error
}

// passOn allows direct writes to to, counted in received.
func (s *Stream) passOn(to *sink, received *atomic.Uint64) {
	if to.raw == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	d := &s.direct
	d.raw, d.received, d.try = to.raw, received, d.tryOnce
}

// takesLocked reports whether b is to be written by the read loop, which then calls write without locks.
func (d *direct) takesLocked(s *Stream, b *block) bool {
	d.writing = d.raw != nil && s.head == nil && !d.copying && d.err == nil && !s.dead.Load() && b.len() <= pageBlock
	return d.writing
}

// write writes what the socket takes at once. Less than all of p is no error.
func (d *direct) write(p []byte) (int, error) {
	d.p, d.n, d.no = p, 0, nil
	err := d.raw.Write(d.try)
	d.p = nil
	if err == nil {
		err = d.no
	}
	d.received.Add(uint64(d.n))
	return d.n, err
}

func (d *direct) tryOnce(fd uintptr) bool {
	n, err := writeFD(fd, d.p)
	d.n = n
	if err != nil && err != syscall.EAGAIN {
		d.no = os.NewSyscallError("write", err)
	}
	return true
}
