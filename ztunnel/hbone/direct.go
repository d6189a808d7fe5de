// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"os"
	"sync/atomic"
	"syscall"
)

// direct passes received data on to an application, see [Splice].
//
// Small data is written by the read loop itself while nothing else waits to be passed on: that spares each request and
// answer a wake-up. The read loop never waits: what the socket does not take is queued. For that, for big blocks, which
// are better written while the read loop decrypts the next, and for the end, a goroutine runs as long as there is
// something to do. An idle stream has none.
//
// All fields but those of the write itself are guarded by Stream.mu.
type direct struct {
	raw      syscall.RawConn // nil: the read loop passes nothing on
	received *atomic.Uint64
	pump     func() // passes on what is queued, and the end; nil before Splice
	pumping  bool   // pump runs, or has come to the end
	writing  bool   // the read loop is writing
	err      error  // why the application took no more

	// The write under way belongs to the read loop.
	try func(fd uintptr) bool
	p   []byte
	n   int
	no  error
}

// passOn has data passed on to to, by the read loop, which counts it in received, or by pump.
func (s *Stream) passOn(to *sink, received *atomic.Uint64, pump func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := &s.direct
	d.raw, d.received, d.try, d.pump = to.raw, received, d.tryOnce, pump
	s.wakeReaderLocked()
}

// wakeReaderLocked is called when there is data or an end to read.
func (s *Stream) wakeReaderLocked() {
	s.rcond.Broadcast()
	d := &s.direct
	if d.pump != nil && !d.pumping && !d.writing && (s.head != nil || s.endLocked() != nil) {
		d.pumping = true
		go d.pump()
	}
}

// nextBlock returns what pump is to pass on, or the error that ends it, io.EOF for the stream's end. With neither, pump
// must return: it is started again.
func (s *Stream) nextBlock() (*block, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.head != nil {
		return s.popLocked(), nil
	}
	err := s.endLocked()
	s.direct.pumping = err != nil // once it has come to the end it is not started again
	return nil, err
}

// takesLocked reports whether b is to be written by the read loop, which then calls write without locks.
func (d *direct) takesLocked(s *Stream, b *block) bool {
	d.writing = d.raw != nil && s.head == nil && !d.pumping && d.err == nil && !s.dead.Load() && b.len() <= pageBlock
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
