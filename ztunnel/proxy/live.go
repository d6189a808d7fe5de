// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"maps"
	"slices"
	"sync"

	"github.com/sluice-mesh/sluice/ztunnel/discovery"
	"github.com/sluice-mesh/sluice/ztunnel/telemetry"
)

// live is the set of connections that exist. A connection enters it before its first policy check, so that a policy
// change that races the check is not missed: the change either is seen by the check or finds the connection here.
type live struct {
	mu    sync.Mutex
	flows map[*flow]struct{}
}

func (l *live) add(f *flow) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.flows == nil {
		l.flows = map[*flow]struct{}{}
	}
	l.flows[f] = struct{}{}
}

func (l *live) remove(f *flow) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.flows, f)
}

func (l *live) all() []*flow {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Keys(l.flows))
}

// recheck cuts every connection that policy no longer allows.
func (l *live) recheck() {
	for _, f := range l.all() {
		f.recheck()
	}
}

// progress brings the byte counters of live connections up to date.
func (l *live) progress() {
	for _, f := range l.all() {
		f.progress()
	}
}

// watchPolicies rechecks after each change of policies, or of what policies apply to whom, until ctx ends.
func (p *Proxy) watchPolicies(ctx context.Context, changes *discovery.Subscription) {
	defer changes.Close()
	for {
		select {
		case <-ctx.Done():
			return
		case <-changes.C():
			if c := changes.Take(); c.Policies || c.PolicyLists {
				p.live.recheck()
			}
		}
	}
}

// Connection is a live connection for the admin page.
type Connection struct {
	UID       string              `json:"-"`
	Direction telemetry.Direction `json:"-"`
	Src       string              `json:"src"`
	Original  string              `json:"originalDst"`
	Actual    string              `json:"actualDst"`
	Protocol  string              `json:"protocol"`
}

// Live returns how many connections there are.
func (p *Proxy) Live() int {
	p.live.mu.Lock()
	defer p.live.mu.Unlock()
	return len(p.live.flows)
}

// Connections lists the live connections.
func (p *Proxy) Connections() []Connection {
	var all []Connection
	for _, f := range p.live.all() {
		all = append(all, f.connection())
	}
	return all
}
