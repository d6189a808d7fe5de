// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"slices"
	"sync"
	"time"
)

// What a peer may do that costs us work and carries no data, per floodWindow. One PING a second is 10 of these; the
// budget is there for peers that send thousands.
const (
	floodBudget = 10000
	floodWindow = 10 * time.Second

	// settingsCost is for a SETTINGS frame and for each setting in it: one may change the window of every stream.
	settingsCost = 10
	// resetCost is for a request that is withdrawn before it was answered, and for streams we must reset because of what
	// the peer did: 1000 in a window are "rapid reset" (CVE-2023-44487) or its mirror.
	resetCost = 10

	// smallUpdate is a WINDOW_UPDATE that spends, but only a tenth if a DATA frame of ours paid for it: a window that is
	// raised by less each time does not overflow for very long. Stock peers send such ones when a window is used up and
	// their application reads a little, which makes us send a little: one for the stream and one for the connection. What
	// frames have paid for is no more than a flood.
	smallUpdate     = 1 << 10
	updatesPerFrame = 2
)

// earn has a DATA frame that was sent pay for updates.
func (c *conn) earn() {
	if c.earned.Load() < floodBudget {
		c.earned.Add(updatesPerFrame)
	}
}

// budget limits frames that make work. It belongs to the read loop.
type budget struct {
	spent  int
	since  time.Time
	tenths int
}

func (b *budget) spend(n int) error {
	b.spent += n
	if b.spent <= floodBudget {
		return nil
	}
	now := time.Now()
	if !b.since.IsZero() && now.Sub(b.since) < floodWindow {
		return connErrorf(CodeEnhanceYourCalm, "too many frames without data")
	}
	b.spent, b.since = n, now
	return nil
}

// spendTenth spends 1 every tenth time.
func (b *budget) spendTenth() error {
	if b.tenths++; b.tenths < 10 {
		return nil
	}
	b.tenths = 0
	return b.spend(1)
}

// recentResets remembers the last streams this end reset: frames that were on their way are ignored.
type recentResets struct {
	mu  sync.Mutex
	ids [128]uint32
	n   int
}

func (r *recentResets) add(id uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ids[r.n%len(r.ids)] = id
	r.n++
}

func (r *recentResets) contains(id uint32) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Contains(r.ids[:], id)
}
