// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"slices"
	"sync"
	"time"
)

// stallTime is how long a connection's window must be used up before new streams avoid the connection.
const stallTime = time.Second

const (
	// leastShare is how much of the connection's window a stream may always take at once; of more it takes half.
	leastShare = 16 << 10
	// maxUnsent is how many blocks may wait for a connection to take them, each of them with memory of its own.
	maxUnsent = 16
)

// sendWindow is the connection's window for sending (RFC 9113, section 6.9). Streams wait here when it is empty, or when
// the connection takes nothing although there is window; they are served in turn, so that none starves beside a busy one.
type sendWindow struct {
	mu     sync.Mutex
	n      int64
	empty  time.Time // since when n is 0 or less, if it is
	unsent int       // takers that have not called done yet
	queue  []*turn
}

// turn is a taker that waits.
type turn struct{ sync.Cond }

func (w *sendWindow) init() { w.n = defaultWindow }

// take returns between 1 and n bytes of window, or 0 once stop says so. Whoever got some calls done when they are on their
// way, or given back.
func (w *sendWindow) take(n int, stop func() bool) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	if got := w.tryLocked(n); got > 0 {
		return got
	}
	t := &turn{sync.Cond{L: &w.mu}}
	w.queue = append(w.queue, t)
	stopped := stop()
	for !stopped && (w.queue[0] != t || !w.openLocked()) {
		t.Wait()
		stopped = stop()
	}
	i := slices.Index(w.queue, t)
	w.queue = slices.Delete(w.queue, i, i+1)
	got := 0
	if !stopped {
		got = w.takeLocked(n)
	}
	w.nextLocked()
	return got
}

// tryTake is take that does not wait; it returns 0 if others do.
func (w *sendWindow) tryTake(n int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.tryLocked(n)
}

func (w *sendWindow) tryLocked(n int) int {
	if len(w.queue) > 0 || !w.openLocked() {
		return 0
	}
	return w.takeLocked(n)
}

func (w *sendWindow) openLocked() bool { return w.n > 0 && w.unsent < maxUnsent }

func (w *sendWindow) takeLocked(n int) int {
	n = min(n, int(w.n), max(leastShare, int(w.n/2)))
	w.n -= int64(n)
	if w.n == 0 {
		w.empty = time.Now()
	}
	w.unsent++
	return n
}

// done ends a take: the caller has sent what it got, but for unused bytes.
func (w *sendWindow) done(unused int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.unsent--
	w.addLocked(unused)
}

// giveBack returns some of what take returned, before done.
func (w *sendWindow) giveBack(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.addLocked(n)
}

// add takes the peer's WINDOW_UPDATE. It returns false if the window would overflow.
func (w *sendWindow) add(n int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.n+int64(n) > maxWindow {
		return false
	}
	w.addLocked(n)
	return true
}

func (w *sendWindow) addLocked(n int) {
	w.n += int64(n)
	if w.n > 0 {
		w.empty = time.Time{}
	}
	w.nextLocked()
}

// nextLocked wakes whose turn it is.
func (w *sendWindow) nextLocked() {
	if len(w.queue) > 0 && w.openLocked() {
		w.queue[0].Signal()
	}
}

// stalled reports whether there has been no window for a while.
func (w *sendWindow) stalled() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.empty.IsZero() && time.Since(w.empty) > stallTime
}

// wake makes all who wait look at their stop again.
func (w *sendWindow) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, t := range w.queue {
		t.Signal()
	}
}

// recvWindow is what the peer may still send, on a connection or a stream. The window is given back in batches of a
// quarter, so that WINDOW_UPDATE frames are few. Its owner locks.
type recvWindow struct {
	size     int
	credit   int // what the peer may still send
	consumed int // taken by the application and not yet given back
}

// receive accounts for n bytes that arrived; false is a flow control error.
func (w *recvWindow) receive(n int) bool {
	w.credit -= n
	return w.credit >= 0
}

// consume accounts for n bytes the application took. It returns the increment to send, mostly 0.
func (w *recvWindow) consume(n int) int {
	w.consumed += n
	if w.consumed < w.size/4 {
		return 0
	}
	n = w.consumed
	w.consumed = 0
	w.credit += n
	return n
}

// grow allows n bytes more at a time, or fewer.
func (w *recvWindow) grow(n int) {
	w.size += n
	w.credit += n
}
