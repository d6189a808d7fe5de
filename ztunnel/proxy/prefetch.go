// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"sync"

	"github.com/sluice-mesh/sluice/ztunnel/identity"
)

// identities counts the pods with each identity, so that certificates are fetched before the first connection and
// dropped with the last pod.
type identities struct {
	mu   sync.Mutex
	pods map[identity.Identity]int
}

// prefetch has the pod's certificate fetched as soon as the control plane knows the pod, and dropped when ctx ends with no
// other pod wanting it.
func (p *podProxy) prefetch(ctx context.Context) {
	self, err := p.awaitSelf(ctx)
	if err != nil {
		return
	}
	id := self.Identity()
	p.Prefetch(id)
	p.identities.add(id, 1)
	<-ctx.Done()
	if p.identities.add(id, -1) == 0 {
		p.Forget(id)
	}
}

// add returns how many pods have id now.
func (i *identities) add(id identity.Identity, n int) int {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.pods == nil {
		i.pods = map[identity.Identity]int{}
	}
	i.pods[id] += n
	left := i.pods[id]
	if left == 0 {
		delete(i.pods, id)
	}
	return left
}
