// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"context"
	"errors"

	"github.com/sluice-mesh/sluice/installer/controlplane"
)

// tearDown takes the pod out of the mesh, in reverse order of bringUp; the caller holds its workload's lock. It goes on
// past errors. With detach the pod's later connections leave in clear, as those of any pod outside the mesh; without,
// they are refused until whoever asked takes the programs off.
func (e *Enroller) tearDown(ctx context.Context, p *pod, detach bool) error {
	var errs []error
	if !e.isReplaced(p) {
		errs = append(errs, controlplane.RemoveWorkload(e.cfg.WorkloadsDir, e.cfg.NodeName, p.sandbox.Namespace, p.sandbox.Name))
	}
	e.mu.Lock()
	in, isCurrent := p.inside, e.current[p.sandbox.UID] == p
	e.mu.Unlock()
	if isCurrent {
		ctx, cancel := context.WithTimeout(ctx, e.cfg.ServeTimeout)
		errs = append(errs, e.cfg.Ztunnels.Remove(ctx, p.sandbox.UID))
		cancel()
	}
	if detach {
		errs = append(errs, e.cfg.Node.DetachPod(pinID(p.id())))
	}
	e.retractInside(p)
	if in != nil {
		in.close()
	}
	return errors.Join(errs...)
}

// isReplaced reports whether a newer sandbox of the same pod name owns the workload file now.
func (e *Enroller) isReplaced(p *pod) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, other := range e.pods {
		if other != p && other.workload() == p.workload() && (other.inMeshLocked() || other.phase == lost) {
			return true
		}
	}
	return false
}

// forget tears the pod down and drops it from memory and disk.
func (e *Enroller) forget(ctx context.Context, p *pod, detach bool) error {
	p.end()
	err := e.tearDown(ctx, p, detach)
	e.mu.Lock()
	if e.pods[p.id()] == p {
		delete(e.pods, p.id())
	}
	e.mu.Unlock()
	return errors.Join(err, e.deleteRecord(p.id()))
}

func (e *Enroller) removeFromZtunnels(p *pod) {
	ctx, cancel := context.WithTimeout(context.Background(), e.cfg.ServeTimeout)
	defer cancel()
	if err := e.cfg.Ztunnels.Remove(ctx, p.sandbox.UID); err != nil {
		e.podLog(p).Warn("undo", "err", err)
	}
}
