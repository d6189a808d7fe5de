// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"crypto/tls"
	"slices"
	"time"
)

// checkout returns a connection on which one stream more is accounted for.
func (p *Pool) checkout(ctx context.Context, key Key, dial DialFunc, cfg *tls.Config) (*pooled, error) {
	for {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		pc, call, err := p.pick(key, dial, cfg)
		if err != nil || pc != nil {
			return pc, err
		}
		select {
		case <-call.done:
			if call.err != nil {
				return nil, call.err
			}
		case <-ctx.Done():
			p.abandon(key, call)
			return nil, context.Cause(ctx)
		}
	}
}

// pick returns a connection with room, or the dial to wait for.
func (p *Pool) pick(key Key, dial DialFunc, cfg *tls.Config) (*pooled, *dialCall, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, nil, ErrPoolClosed
	}
	h := p.hostLocked(key)
	if pc := p.pickLocked(h); pc != nil {
		return pc, nil, nil
	}
	if h.dial == nil {
		p.dialLocked(h, key, dial, cfg)
	}
	h.dial.waiters++
	return nil, h.dial, nil
}

func (p *Pool) hostLocked(key Key) *host {
	h := p.hosts[key]
	if h == nil {
		h = new(host)
		p.hosts[key] = h
	}
	return h
}

// pickLocked takes the first connection that has room. One that is full with this stream is retired for good. One whose
// window is used up, by a peer whose readers hold it back, is left alone for now: a new stream would wait for them.
func (p *Pool) pickLocked(h *host) *pooled {
	for i := 0; i < len(h.conns); {
		pc := h.conns[i]
		limit, ok := pc.c.limit(p.cfg.MaxStreams)
		if ok && pc.c.flow.stalled() {
			i++
			continue
		}
		if ok && pc.active+1 < limit {
			p.useLocked(pc)
			return pc
		}
		h.conns = slices.Delete(h.conns, i, i+1)
		pc.retired = true
		if ok && pc.active < limit {
			p.useLocked(pc)
			return pc
		}
		if pc.active == 0 {
			pc.c.retire()
		}
	}
	return nil
}

// limit returns how many streams the connection may carry at once; ok is false if it takes no new ones.
func (c *conn) limit(most int) (n int, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ok = c.err == nil && c.goAway == nil && c.drain == drainNone && c.lastID+2 <= maxStreamID
	return min(most, int(min(c.peerMaxStreams, maxStreamID))), ok
}

func (p *Pool) useLocked(pc *pooled) {
	pc.active++
	if pc.idle != nil {
		pc.idle.Stop()
		pc.idle = nil
	}
}

// streamEnded is called when a stream has left its connection.
func (p *Pool) streamEnded(pc *pooled) {
	p.mu.Lock()
	pc.active--
	idle := pc.active == 0
	retired := pc.retired
	if idle {
		p.restLocked(pc)
	}
	p.mu.Unlock()
	if idle && retired {
		pc.c.retire()
	}
}

// restLocked gives a connection without streams its idle time.
func (p *Pool) restLocked(pc *pooled) {
	if !pc.retired && p.cfg.IdleTimeout > 0 {
		pc.idle = time.AfterFunc(p.cfg.IdleTimeout, func() { p.expire(pc) })
	}
}

// expire retires a connection that has been idle for long.
func (p *Pool) expire(pc *pooled) {
	p.mu.Lock()
	idle := pc.active == 0
	if idle {
		p.removeLocked(pc)
	}
	p.mu.Unlock()
	if idle {
		pc.c.retire()
	}
}

// retire makes a connection take no more streams from this pool.
func (p *Pool) retire(pc *pooled) {
	p.mu.Lock()
	p.removeLocked(pc)
	idle := pc.active == 0
	p.mu.Unlock()
	if idle {
		pc.c.retire()
	}
}

func (p *Pool) removeLocked(pc *pooled) {
	pc.retired = true
	if pc.idle != nil {
		pc.idle.Stop()
		pc.idle = nil
	}
	h := p.hosts[pc.key]
	if h == nil {
		return
	}
	h.conns = slices.DeleteFunc(h.conns, func(other *pooled) bool { return other == pc })
	if len(h.conns) == 0 && h.dial == nil {
		delete(p.hosts, pc.key)
	}
}
