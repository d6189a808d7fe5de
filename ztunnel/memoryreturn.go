// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"runtime/debug"
	"time"
)

const (
	returnInterval = 5 * time.Second
	// returnFall is how many connections must have gone for their memory to be worth a collection: some 25 MiB.
	returnFall = 1000
)

// returnMemory gives the kernel back what many connections held, soon after they closed: a process that has become idle
// allocates nothing, so nothing else would collect for minutes. It looks whenever tick fires, until ctx ends.
func returnMemory(ctx context.Context, tick <-chan time.Time, connections func() int) {
	var level waterLevel
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick:
			if level.fell(connections()) {
				debug.FreeOSMemory()
			}
		}
	}
}

// waterLevel follows how many connections there are.
type waterLevel struct{ most int }

// fell reports whether at least returnFall connections, and half of them, have gone since it last did.
func (l *waterLevel) fell(now int) bool {
	l.most = max(l.most, now)
	if gone := l.most - now; gone < returnFall || gone < l.most/2 {
		return false
	}
	l.most = now
	return true
}
