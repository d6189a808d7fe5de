// SPDX-License-Identifier: Apache-2.0

package hbone

// Memory lends what the windows of streams may hold beyond 65535 bytes each, which they always have. It is asked when a
// stream opens and once for each quarter of a window that was read, by many goroutines at once, with locks held: it must
// not wait.
type Memory interface {
	// Borrow lends up to n bytes and returns how much.
	Borrow(n int) int
	// Return takes back what Borrow lent, in whole or in part.
	Return(n int)
	// Short reports whether more is lent than should be. Windows above their least then shrink as they are read.
	Short() bool
}

// leastWindow is what a stream has in any case: the initial window in SETTINGS. Without a Memory that is all a stream
// begins with; else the first update, which goes with the request or the answer to it, brings what was lent. No less than
// HTTP/2's default, because a peer may send that much before it knows.
func (c *conn) leastWindow() int {
	if c.memory == nil {
		return c.windows.first()
	}
	return min(defaultWindow, c.windows.first())
}

// lend returns how much of n a window may grow.
func (c *conn) lend(n int) int {
	if c.memory == nil || n <= 0 {
		return max(n, 0)
	}
	return c.memory.Borrow(n)
}

// borrow returns how much of n a window may grow beyond the size that streams begin with.
func (c *conn) borrow(n int) int {
	for {
		left := c.loans.Load()
		n = min(n, int(left))
		if n <= 0 || c.loans.CompareAndSwap(left, left-int64(n)) {
			break
		}
	}
	lent := c.lend(n)
	c.loans.Add(int64(max(n, 0) - lent))
	return lent
}

// openWindowLocked opens the window of a new stream as far as there is memory. The update leaves with the HEADERS that the
// caller, who holds the queue lock too, has queued: data that answers them finds the window open.
func (s *Stream) openWindowLocked() {
	more := s.c.lend(s.c.windows.first() - s.recv.size)
	if more == 0 {
		return
	}
	s.recv.grow(more)
	_ = s.c.w.pushLocked(appendWindowUpdate(nil, s.id, uint32(more))) // an error ends the connection
}

// growLocked doubles the window, if it may. It returns the increment.
func (s *Stream) growLocked() int {
	size, first := s.recv.size, s.c.windows.first()
	var more int
	if size < first {
		more = s.c.lend(min(size, first-size))
	} else {
		more = s.c.borrow(min(size, s.c.windows.Stream-size))
	}
	s.recv.grow(more)
	return more
}

// shrinkLocked makes the window up to n bytes smaller, which are not in the peer's hands. It returns by how much.
func (s *Stream) shrinkLocked(n int) int {
	size, first := s.recv.size, s.c.windows.first()
	n = min(n, size-s.c.leastWindow())
	if n <= 0 {
		return 0
	}
	s.recv.grow(-n)
	s.c.loans.Add(int64(max(size-first, 0) - max(size-n-first, 0)))
	if s.c.memory != nil {
		s.c.memory.Return(n)
	}
	return n
}

// adjustLocked judges the window when inc bytes are to be given back to the peer, and returns how many to give.
func (s *Stream) adjustLocked(inc int) int {
	switch {
	case s.c.memory != nil && s.c.memory.Short():
		return inc - s.shrinkLocked(inc)
	case s.head == nil:
		return inc + s.growLocked()
	}
	return inc
}
