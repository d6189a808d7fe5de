// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"context"
	"errors"
)

// tearDown takes the pod out of the mesh, in reverse order of bringUp; the caller holds its workload's lock. With detach
// the pod's later connections leave in clear, as those of any pod outside the mesh; without, they are refused until
// whoever asked takes the programs off.
//
// It goes on past errors. On error the pod is leaving, nobody serves it, and each comparison tries again.
func (e *Enroller) tearDown(ctx context.Context, p *pod, detach bool) error {
	in, tell := e.leave(p)
	fault("leaving")
	var errs []error
	if !e.isReplaced(p) {
		errs = append(errs, e.retract(p.sandbox.Namespace, p.sandbox.Name))
		fault("unpublished")
	}
	if tell {
		ctx, cancel := context.WithTimeout(ctx, e.cfg.ServeTimeout)
		errs = append(errs, e.cfg.Ztunnels.Remove(ctx, p.sandbox.UID))
		cancel()
		fault("taken from ztunnel")
	}
	if detach {
		errs = append(errs, e.cfg.Node.DetachPod(pinID(p.id())))
		fault("detached")
	}
	err := errors.Join(errs...)
	e.retractInside(p)
	if err != nil {
		e.setPhase(p, leaving)
	}
	if in != nil {
		in.close()
	}
	fault("listeners closed")
	return err
}

// leave has the pod be leaving, if it is anything in the mesh. It returns what is open of it, and whether ztunnel may
// have been told of it, and of no newer sandbox of the same uid.
func (e *Enroller) leave(p *pod) (in *inside, tell bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	owner := e.current[p.sandbox.UID]
	tell = owner == p || owner == nil && p.phase == leaving
	if p.phase != known {
		p.phase = leaving
	}
	return p.inside, tell
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

// forget tears the pod down and drops it from memory and disk. On error it is kept until that succeeds, also by the next
// agent: a pod that was deleted must not be taken for one that is to be enrolled.
func (e *Enroller) forget(ctx context.Context, p *pod, detach bool) error {
	p.end()
	if err := e.condemn(p, detach); err != nil {
		e.podLog(p).Warn("remember that the pod is to be forgotten", "err", err)
	}
	fault("condemned")
	if err := e.tearDown(ctx, p, detach); err != nil {
		return err
	}
	if err := e.deleteRecord(p.id()); err != nil {
		e.setPhase(p, leaving)
		return err
	}
	fault("record deleted")
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.pods[p.id()] == p {
		delete(e.pods, p.id())
	}
	e.changed()
	return nil
}

// condemn says in the pod's record that it is to be forgotten. One outside the mesh needs none: forgetting it is to
// delete the record.
func (e *Enroller) condemn(p *pod, detach bool) error {
	e.mu.Lock()
	sentence := doomed
	if detach {
		sentence = doomedWithPrograms
	}
	isNews := p.phase != known && p.fate != sentence
	p.fate = sentence
	e.mu.Unlock()
	if !isNews {
		return nil
	}
	return e.saveRecord(p)
}

func (e *Enroller) removeFromZtunnels(p *pod) {
	ctx, cancel := context.WithTimeout(context.Background(), e.cfg.ServeTimeout)
	defer cancel()
	if err := e.cfg.Ztunnels.Remove(ctx, p.sandbox.UID); err != nil {
		e.podLog(p).Warn("undo", "err", err)
	}
}
