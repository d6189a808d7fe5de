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
	// maxHandshakesOfOne is the share of one address. A ztunnel does one at a time for each pod, a gateway one for each
	// thread.
	maxHandshakesOfOne = 32
)

// handshakes are those under way, by source: an IPv4 address, or a /64 of IPv6, which may be all one host's.
//
// When there is no room, a source with fewer than another takes the place of the oldest of whoever has most: however many
// stall, they keep nobody out who has none. If each has but one, nobody is ended and no more is accepted: what comes then
// waits in the kernel's queue. The zero value is ready.
type handshakes struct {
	mu      sync.Mutex
	by      map[netip.Prefix][]*handshake // the oldest first
	total   int
	waiting int        // in admit
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

// admit is the [hbone.Server]'s Admit. It waits if every place is taken by another source.
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
	source := sourceOf(from)
	if n := h.ofLocked(from); n >= maxHandshakesOfOne {
		return fmt.Errorf("%w: %d handshakes are under way with %s", errLimit, n, from)
	}
	for h.total >= maxHandshakes {
		own, most := h.by[source], h.mostLocked()
		switch {
		case len(most) > len(own)+1:
			h.removeLocked(most[0])
			most[0].end(fmt.Errorf("%w: the handshake made room for one with %s, %d were under way", errLimit, from, maxHandshakes))
		case len(own) > 0:
			return fmt.Errorf("%w: %d handshakes are under way, %d of them with %s", errLimit, h.total, len(own), source)
		default:
			h.waiting++
			h.waitLocked()
			h.waiting--
			h.wakeLocked()
		}
	}
	return nil
}

func (h *handshakes) ofLocked(from netip.Addr) (n int) {
	for _, other := range h.by[sourceOf(from)] {
		if other.from == from {
			n++
		}
	}
	return n
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
