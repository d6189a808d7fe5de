// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/sluice-mesh/sluice/ztunnel/discovery"
)

const (
	// hostTimeout bounds a lookup.
	hostTimeout = 5 * time.Second
	// hostLifetime is how long its answer serves. The resolver does not tell for how long the answer is meant.
	hostLifetime = 15 * time.Second
)

// hosts are the addresses of host names that workloads have in place of addresses, by the resolver of ztunnel's own pod.
// Failures are not remembered.
type hosts struct {
	resolver *net.Resolver // nil is the system's

	mu      sync.Mutex
	answers map[string]*hostAnswer
}

// hostAnswer is set once done is closed.
type hostAnswer struct {
	done  chan struct{}
	addrs []netip.Addr
	err   error
	until time.Time
}

// lookUp returns at least one address, or an error. Whoever asks for the same name at the same time shares a lookup.
func (h *hosts) lookUp(ctx context.Context, host string) ([]netip.Addr, error) {
	a := h.answer(host)
	select {
	case <-a.done:
		return a.addrs, a.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// answer begins a lookup unless there is one, or an answer that still serves.
func (h *hosts) answer(host string) *hostAnswer {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	if a := h.answers[host]; a != nil && !a.expired(now) {
		return a
	}
	if h.answers == nil {
		h.answers = map[string]*hostAnswer{}
	}
	for name, a := range h.answers {
		if a.expired(now) {
			delete(h.answers, name)
		}
	}
	a := &hostAnswer{done: make(chan struct{})}
	h.answers[host] = a
	go h.ask(host, a)
	return a
}

func (a *hostAnswer) expired(now time.Time) bool {
	select {
	case <-a.done:
		return a.err != nil || now.After(a.until)
	default:
		return false
	}
}

func (h *hosts) ask(host string, a *hostAnswer) {
	ctx, cancel := context.WithTimeout(context.Background(), hostTimeout)
	defer cancel()
	defer close(a.done)
	a.addrs, a.err = h.resolver.LookupNetIP(ctx, "ip", host)
	for i := range a.addrs {
		a.addrs[i] = a.addrs[i].Unmap()
	}
	a.until = time.Now().Add(hostLifetime)
}

// resolve completes a route whose workload has a host name in place of an address: any of its addresses, of the family
// that the client used if there is one.
func (p *Proxy) resolve(ctx context.Context, src *discovery.Workload, r *route, family netip.Addr) error {
	if r.dial.Addr().IsValid() {
		return nil
	}
	host := r.workload.Hostname
	p.Metrics.OnDemandDNS(peerOf(src, true), host)
	addrs, err := p.hosts.lookUp(ctx, host)
	if err != nil {
		return refuse(VerdictNoAddress, "no valid destination: host name of workload %s: %w", r.workload.UID, err)
	}
	r.at(anyOf(addrs, family))
	if a := r.dial.Addr(); isHidden(a) || (a.IsLoopback() && p.router.isReserved(r.dial.Port())) {
		return refuse(VerdictNoAddress, "no valid destination: %s, the address of %s, is ztunnel's own", r.dial, host)
	}
	return nil
}

// anyOf chooses at random among the addresses of the wanted family, or among all if there is none.
func anyOf(addrs []netip.Addr, family netip.Addr) netip.Addr {
	var same []netip.Addr
	for _, a := range addrs {
		if a.Is4() == family.Is4() {
			same = append(same, a)
		}
	}
	if len(same) > 0 {
		addrs = same
	}
	return addrs[rand.IntN(len(addrs))]
}
