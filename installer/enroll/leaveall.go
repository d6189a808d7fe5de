// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"context"
	"errors"
	"fmt"
)

// LeaveAll takes all pods out of the mesh and forgets them: what they begin from then on is in clear. It goes on past
// errors. Call it after Run, when nobody is answered any more.
func (e *Enroller) LeaveAll(ctx context.Context) error {
	var errs []error
	for _, p := range e.all() {
		if err := e.leaveNow(ctx, p); err != nil {
			errs = append(errs, fmt.Errorf("%s/%s: %w", p.sandbox.Namespace, p.sandbox.Name, err))
		}
	}
	return errors.Join(errs...)
}

func (e *Enroller) leaveNow(ctx context.Context, p *pod) error {
	defer e.workloads.lock(p.workload())()
	if e.get(p.id()) != p {
		return nil
	}
	e.podLog(p).Info("pod taken out of the mesh", "reason", "the agent leaves the node")
	return e.forget(ctx, p, true)
}
