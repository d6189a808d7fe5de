// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"errors"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
)

// smallFrame is the size up to which a frame is copied into the queue instead of being written where it lies.
const smallFrame = 8 << 10

// errQueueFull reports a peer that makes us answer faster than it reads.
var errQueueFull = errors.New("too many unsent frames")

// writer orders all frames of one connection. Small frames join a queue, and whoever holds the write lock sends all that
// is queued in as few TLS records and system calls as possible. Big DATA frames are written by their owner, from where
// they lie, after the queue.
//
//	small frame: queue it; write lock free? send the queue. Else its holder will, after its own frame.
//	big frame:   wait for the write lock; send the queue, then the frame, then what was queued meanwhile.
//
// The order in the queue is the order on the wire, so what must be decided together with it (a stream's id, the state of
// HPACK, whether the connection still takes streams) is decided under qmu.
type writer struct {
	dst  io.Writer
	wire *wire
	fail func(error) // called without locks when a write failed

	qmu    sync.Mutex
	queue  *block
	closed bool // no goroutine may start any more
	wg     sync.WaitGroup

	queued  atomic.Bool
	waiting atomic.Int32 // owners of big frames that wait for lock
	lock    sync.Mutex
}

// reserveLocked returns the queue with room for n more bytes.
func (w *writer) reserveLocked(n int) (*block, error) {
	q := w.queue
	if q == nil {
		q = newBlock(n)
		w.queue = q
	}
	if q.room() >= n {
		return q, nil
	}
	grown := newBlock(q.len() + n)
	if grown.room() < q.len()+n {
		grown.free()
		return nil, errQueueFull
	}
	grown.append(q.data())
	q.free()
	w.queue = grown
	return grown, nil
}

// pushLocked queues one or more whole frames. Once nothing may follow on the wire it does nothing. An error ends the
// connection: HPACK counts on every block that was encoded, and both ends on the frames that say how a stream ended.
func (w *writer) pushLocked(frames []byte) error {
	if w.closed {
		return nil
	}
	q, err := w.reserveLocked(len(frames))
	if err != nil {
		err = connErrorf(CodeEnhanceYourCalm, "%v", err)
		w.wg.Add(1)
		go w.overflow(err) // without the caller's locks
		return err
	}
	q.append(frames)
	w.queued.Store(true)
	return nil
}

func (w *writer) overflow(err error) {
	defer w.wg.Done()
	w.fail(err)
}

// push queues whole frames and sees to it that they are sent, without waiting for that.
func (w *writer) push(frames []byte) error {
	w.qmu.Lock()
	err := w.pushLocked(frames)
	w.qmu.Unlock()
	w.kick()
	return err
}

// tryPush queues a small DATA frame if the queue is short; else its owner should wait its turn with write.
func (w *writer) tryPush(frame []byte, ok func() bool) (pushed, valid bool) {
	w.qmu.Lock()
	defer w.qmu.Unlock()
	if w.queue != nil && w.queue.len() > midBlock {
		return false, true
	}
	if !ok() {
		return false, false
	}
	return w.pushLocked(frame) == nil, true
}

// kick has the queue sent by another goroutine, for callers that must not wait for the peer.
func (w *writer) kick() {
	if w.queued.Load() && w.lock.TryLock() {
		w.spawnUnlock()
	}
}

// spawnUnlock passes the held write lock on to a goroutine that sends the queue.
func (w *writer) spawnUnlock() {
	w.qmu.Lock()
	if w.closed {
		w.qmu.Unlock()
		w.lock.Unlock()
		return
	}
	w.wg.Add(1)
	w.qmu.Unlock()
	go w.sendQueue()
}

func (w *writer) sendQueue() {
	defer w.wg.Done()
	w.unlock(nil)
}

// send has the queue sent, by the caller if nobody else is writing. It lets other goroutines that can run go first: what
// they queue leaves with the same system call, and on an idle machine there are none.
func (w *writer) send() {
	if w.queued.Load() && w.lock.TryLock() {
		runtime.Gosched()
		w.unlock(nil)
	}
}

// write sends frame after all that is queued, unless ok says under the write lock that it must not be sent any more.
func (w *writer) write(frame []byte, ok func() bool) (valid bool) {
	w.waiting.Add(1)
	w.lock.Lock()
	w.waiting.Add(-1)
	err := w.drain()
	valid = err == nil && ok()
	if valid {
		_, err = w.dst.Write(frame)
	}
	w.unlock(err)
	return valid
}

// drain passes the queue to crypto/tls. The caller holds the write lock.
func (w *writer) drain() error {
	w.qmu.Lock()
	q := w.queue
	w.queue = nil
	w.queued.Store(false)
	w.qmu.Unlock()
	if q == nil {
		return nil
	}
	_, err := w.dst.Write(q.data())
	q.free()
	return err
}

// unlock sends what is queued and gives up the write lock. If somebody waits for the lock it leaves the flush to them, so
// that several frames share one system call. A caller that keeps finding new work passes it to a goroutine: it has its
// own stream to serve.
func (w *writer) unlock(err error) {
	for round := 0; ; round++ {
		if err == nil {
			err = w.drain()
		}
		if err == nil && w.waiting.Load() == 0 {
			err = w.wire.flush()
		}
		if err != nil {
			w.lock.Unlock()
			w.fail(err)
			return
		}
		w.lock.Unlock()
		if !w.queued.Load() || !w.lock.TryLock() {
			return
		}
		if round == 2 {
			w.spawnUnlock()
			return
		}
	}
}

// finish sends what is left, as long as the connection's write deadline allows, and waits for the last writer.
// Nothing is sent later.
func (w *writer) finish() {
	w.qmu.Lock()
	w.closed = true
	w.qmu.Unlock()
	w.wg.Wait()
	w.lock.Lock()
	if w.drain() == nil {
		_ = w.wire.flush()
	}
	w.lock.Unlock()
}
