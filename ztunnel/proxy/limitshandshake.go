// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
)

const (
	// maxHandshakes is how many handshakes of HBONE a pod has under way at a time. Each costs a key exchange, up to 64 KiB
	// and, if the peer says nothing more, 10 s.
	maxHandshakes = 256
	// maxQueued is how many more are accepted and wait, in bursts of one address: a gateway to another network opens a
	// connection for each of its clients'.
	maxQueued = 1024
)

// handshakes are those under way, by source: an IPv4 address, or a /64 of IPv6, which may be all one host's or all of a
// node's pods'.
//
// As long as there is room anybody has it. When there is none, a source with fewer than another takes the place of the
// oldest of whoever has most, and within a source an address does: however many stall, they keep nobody out who has none.
// Who has most already waits for one of its own to end. If each has but one, nobody is ended and no more is accepted: what
// comes then waits in the kernel's queue. The zero value is ready.
type handshakes struct {
	mu      sync.Mutex
	by      map[netip.Prefix][]*handshake // the oldest first
	total   int
	queued  int        // in admit, behind others of their own
	waiting int        // in admit, while all others have one
	drained bool       // accept what there is
	changed *sync.Cond // of mu; nil before somebody waits
}

type handshake struct {
	from netip.Addr
	end  func(error)
}

func sourceOf(from netip.Addr) netip.Prefix {
	if from.Is6() {
		return netip.PrefixFrom(from, 64).Masked()
	}
	return netip.PrefixFrom(from, from.BitLen())
}

// admit is the [hbone.Server]'s Admit. It waits if every place is taken and none can be had from others.
func (h *handshakes) admit(conn net.Conn, end func(error)) (done func(), err error) {
	mine := &handshake{addrPort(conn.RemoteAddr()).Addr(), end}
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.makeRoomLocked(mine.from); err != nil {
		return nil, err
	}
	if h.by == nil {
		h.by = map[netip.Prefix][]*handshake{}
	}
	source := sourceOf(mine.from)
	h.by[source] = append(h.by[source], mine)
	h.total++
	return func() { h.done(mine) }, nil
}

func (h *handshakes) makeRoomLocked(from netip.Addr) error {
	for h.total >= maxHandshakes {
		if victim := h.victimLocked(from); victim != nil {
			h.removeLocked(victim)
			victim.end(fmt.Errorf("%w: the handshake made room for one with %s, %d were under way", errLimit, from, maxHandshakes))
			continue
		}
		waits := &h.waiting
		if own := len(h.by[sourceOf(from)]); own > 0 {
			if waits = &h.queued; h.queued >= maxQueued {
				return fmt.Errorf("%w: %d handshakes are under way, %d of them with %s, and %d wait", errLimit, h.total, own, sourceOf(from), h.queued)
			}
		}
		*waits++
		h.waitLocked()
		*waits--
		h.wakeLocked()
	}
	return nil
}

// victimLocked returns the handshake that has to make room for a newcomer, nil if none has to.
func (h *handshakes) victimLocked(newcomer netip.Addr) *handshake {
	own, most := h.by[sourceOf(newcomer)], h.mostLocked()
	if len(most) > len(own)+1 {
		oldest, _ := oldestOfMost(most)
		return oldest
	}
	if oldest, n := oldestOfMost(own); n > countOf(own, newcomer)+1 {
		return oldest
	}
	return nil
}

// mostLocked returns those of the source that has most.
func (h *handshakes) mostLocked() (most []*handshake) {
	for _, of := range h.by {
		if len(of) > len(most) {
			most = of
		}
	}
	return most
}

// oldestOfMost returns the oldest handshake of the address that has most of them, and how many it has.
func oldestOfMost(all []*handshake) (oldest *handshake, n int) {
	count := map[netip.Addr]int{}
	for _, one := range all {
		count[one.from]++
		n = max(n, count[one.from])
	}
	for _, one := range all {
		if count[one.from] == n {
			return one, n
		}
	}
	return nil, 0
}

func countOf(all []*handshake, from netip.Addr) (n int) {
	for _, one := range all {
		if one.from == from {
			n++
		}
	}
	return n
}

func (h *handshakes) done(of *handshake) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.removeLocked(of)
}

// removeLocked does nothing for one that is gone: it made room for another.
func (h *handshakes) removeLocked(of *handshake) {
	source := sourceOf(of.from)
	var rest []*handshake // not in place: others may still read the old one
	for _, other := range h.by[source] {
		if other != of {
			rest = append(rest, other)
		}
	}
	h.total -= len(h.by[source]) - len(rest)
	if h.by[source] = rest; rest == nil {
		delete(h.by, source)
	}
	h.wakeLocked()
}

// ready waits, before the next is accepted, while one that was accepted has to wait.
func (h *handshakes) ready() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for h.waiting > 0 && !h.drained {
		h.waitLocked()
	}
}

// drain ends ready, so that listeners can be closed.
func (h *handshakes) drain() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.drained = true
	h.wakeLocked()
}

func (h *handshakes) waitLocked() {
	if h.changed == nil {
		h.changed = sync.NewCond(&h.mu)
	}
	h.changed.Wait()
}

func (h *handshakes) wakeLocked() {
	if h.changed != nil {
		h.changed.Broadcast()
	}
}
