// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"sync"
	"time"
)

// stallTime is how long a connection's window must be used up before new streams avoid the connection.
const stallTime = time.Second

// sendWindow is the connection's window for sending (RFC 9113, section 6.9). Streams wait here when it is empty.
type sendWindow struct {
	mu      sync.Mutex
	cond    sync.Cond
	n       int64
	empty   time.Time // since when n is 0 or less, if it is
	waiters int
}

func (w *sendWindow) init() {
	w.cond.L = &w.mu
	w.n = defaultWindow
}

// take returns between 1 and n bytes of window, or 0 once stop says so.
func (w *sendWindow) take(n int, stop func() bool) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.n <= 0 {
		if stop() {
			return 0
		}
		w.waiters++
		w.cond.Wait()
		w.waiters--
	}
	n = min(n, int(w.n))
	w.n -= int64(n)
	if w.n == 0 {
		w.empty = time.Now()
	}
	return n
}

// wait returns once there is any window, or stop says so.
func (w *sendWindow) wait(stop func() bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.n <= 0 && !stop() {
		w.waiters++
		w.cond.Wait()
		w.waiters--
	}
}

// add gives n bytes back or more. It returns false if the window would overflow.
func (w *sendWindow) add(n int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.n+int64(n) > maxWindow {
		return false
	}
	w.n += int64(n)
	w.empty = time.Time{}
	w.wakeLocked()
	return true
}

// stalled reports whether there has been no window for a while.
func (w *sendWindow) stalled() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.empty.IsZero() && time.Since(w.empty) > stallTime
}

// wake makes waiters look at their stop again.
func (w *sendWindow) wake() {
	w.mu.Lock()
	w.wakeLocked()
	w.mu.Unlock()
}

func (w *sendWindow) wakeLocked() {
	if w.waiters > 0 {
		w.cond.Broadcast()
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
