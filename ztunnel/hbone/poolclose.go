// SPDX-License-Identifier: Apache-2.0

package hbone

import "context"

// CloseIdle closes the connections that carry no stream.
func (p *Pool) CloseIdle() {
	p.mu.Lock()
	var idle []*pooled
	for pc := range p.all {
		if pc.active == 0 {
			p.removeLocked(pc)
			idle = append(idle, pc)
		}
	}
	p.mu.Unlock()
	for _, pc := range idle {
		pc.c.retire()
	}
}

// Close lets streams end, at most until ctx ends, and closes every connection. New requests get [ErrPoolClosed]. It
// returns when all goroutines of the pool have ended, with ctx's error if streams were cut. With a ctx that has ended it
// cuts at once, writers that wait for the peer included.
func (p *Pool) Close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.retireAll()
	gone := make(chan struct{})
	go func() {
		p.conns.Wait()
		close(gone)
	}()
	select {
	case <-gone:
		p.stop(ErrPoolClosed)
		return nil
	case <-ctx.Done():
	}
	p.stop(ErrPoolClosed)
	<-gone
	return context.Cause(ctx)
}

func (p *Pool) retireAll() {
	p.mu.Lock()
	all := make([]*pooled, 0, len(p.all))
	for pc := range p.all {
		p.removeLocked(pc)
		if pc.active == 0 {
			all = append(all, pc)
		}
	}
	for _, h := range p.hosts {
		if h.dial != nil {
			h.dial.cancel(ErrPoolClosed)
		}
	}
	p.mu.Unlock()
	for _, pc := range all {
		pc.c.retire()
	}
}

// Stats returns the pool's counters.
func (p *Pool) Stats() Stats { return p.stats.snapshot() }
