// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"

	"google.golang.org/grpc/peer"
	"k8s.io/apimachinery/pkg/util/cache"
	"k8s.io/client-go/util/flowcontrol"
)

// What one caller may have the API asked. A ztunnel needs one answer a minute, whatever it asks for.
const (
	reviewRate  = 2 // a second
	reviewBurst = 20
	maxCallers  = 4096
)

// callers count what each has had asked. Safe for concurrent use.
type callers struct {
	mu   sync.Mutex
	each *cache.LRUExpireCache // flowcontrol.RateLimiter by netip.Prefix
}

func newCallers() *callers { return &callers{each: cache.NewLRUExpireCache(maxCallers)} }

// admit says whether the API may be asked for the caller once more. One that is forgotten, since others came, is new.
func (c *callers) admit(ctx context.Context) bool {
	from := callerOf(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	limit, ok := c.each.Get(from)
	if !ok {
		limit = flowcontrol.NewTokenBucketRateLimiter(reviewRate, reviewBurst)
	}
	c.each.Add(from, limit, reviewBurst/reviewRate*time.Second) // by when an idle one is full again
	return limit.(flowcontrol.RateLimiter).TryAccept()
}

// callerOf is the caller's address, of IPv6 the /64: whoever has one of it has them all.
func callerOf(ctx context.Context) netip.Prefix {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return netip.Prefix{}
	}
	tcp, ok := p.Addr.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	addr, bits := tcp.AddrPort().Addr().Unmap(), 32
	if addr.Is6() {
		bits = 64
	}
	prefix, _ := addr.WithZone("").Prefix(bits) // bits fit the family
	return prefix
}
