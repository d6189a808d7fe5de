// SPDX-License-Identifier: Apache-2.0

package proxy

import "context"

// prefetch has the pod's certificate fetched as soon as the control plane knows the pod, and released when ctx ends.
func (p *podProxy) prefetch(ctx context.Context) {
	self, err := p.awaitSelf(ctx)
	if err != nil {
		return
	}
	p.Hold(self.Identity())
	<-ctx.Done()
	p.Release(self.Identity())
}
