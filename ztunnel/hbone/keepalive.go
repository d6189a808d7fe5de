// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"sync"
	"time"
)

var keepalivePing = [8]byte{'s', 'l', 'u', 'i', 'c', 'e', 'k', 'a'}

// patience is how many timeouts a PING has in which something else arrives.
const patience = 3

// keepalive sends a PING each interval and ends a connection whose peer does not answer within the timeout. Anything else
// that arrives meanwhile extends the timeout, to three times its length: on a slow link the answer may wait behind much
// data, but a peer that sends and does not read must not stay for ever.
type keepalive struct {
	mu       sync.Mutex
	c        *conn
	timer    *time.Timer
	waiting  bool
	seen     uint64 // wire reads when the timeout began
	passed   int    // timeouts since the PING
	finished bool
}

func (k *keepalive) start(c *conn) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.c = c
	if c.pingInterval > 0 {
		k.timer = time.AfterFunc(c.pingInterval, k.tick)
	}
}

func (k *keepalive) stop() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.finished = true
	if k.timer != nil {
		k.timer.Stop()
	}
}

func (k *keepalive) tick() {
	if k.expired() {
		k.c.fail(ErrPingTimeout)
	}
}

func (k *keepalive) expired() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.finished {
		return false
	}
	reads := k.c.wire.reads.Load()
	if k.waiting {
		k.passed++
		if reads == k.seen || k.passed >= patience {
			return true
		}
	} else {
		k.waiting, k.passed = true, 0
		_ = k.c.w.push(appendPing(nil, 0, keepalivePing))
	}
	k.seen = reads
	k.timer.Reset(k.c.pingTimeout)
	return false
}

// pong is called by the read loop.
func (k *keepalive) pong() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.waiting && !k.finished {
		k.waiting = false
		k.timer.Reset(k.c.pingInterval)
	}
}
