// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/installer/controlplane"
	"github.com/sluice-mesh/sluice/installer/ztunnels"
)

// repair compares a served pod with what it should be, part by part, and puts right what is not.
func (e *Enroller) repair(ctx context.Context, p *pod) error {
	e.mu.Lock()
	in, refusing := p.inside, e.refusing
	e.mu.Unlock()
	attached, err := e.cfg.Node.Pod(pinID(p.id()))
	if errors.Is(err, bpf.ErrNotAttached) {
		e.podLog(p).Warn("pins of pod are gone; attaching anew")
		attached, err = e.attachRunning(p, in)
	}
	if err != nil {
		return err
	}
	defer func() { _ = attached.Close() }()
	if !refusing {
		if err := in.set.Repair(in.ns, e.tagProxy, attached); err != nil {
			return err
		}
		if err := e.repairPrograms(p, attached); err != nil {
			return err
		}
	}
	return errors.Join(e.repairZtunnel(ctx, p), e.repairWorkload(p))
}

func (e *Enroller) repairPrograms(p *pod, attached *bpf.Pod) error {
	drift := attached.Check()
	if drift == nil {
		return nil
	}
	e.podLog(p).Warn("capture of pod differs; repairing", "drift", drift)
	// By the pins, not by what we know: a second network's ADD may have put more interfaces under capture.
	info := attached.Info()
	cfg := podConfig(p, nil, e.cfg.CaptureAll)
	cfg.Interfaces, cfg.HostIfindexes = info.Interfaces, info.HostIfindexes
	again, err := e.cfg.Node.AttachPod(cfg)
	if err != nil {
		return fmt.Errorf("repair: %w", err)
	}
	defer func() { _ = again.Close() }()
	if err := again.Check(); err != nil {
		return fmt.Errorf("after repair: %w", err)
	}
	return nil
}

// repairZtunnel tells the newest ztunnel of the pod if it has not acked it as it is: its service account is another, a
// sandbox of the same uid that failed took its place, or ztunnel refused it.
func (e *Enroller) repairZtunnel(ctx context.Context, p *pod) error {
	err := e.update(ctx, p, ztunnels.Underway)
	if errors.Is(err, ztunnels.ErrNone) {
		return nil // The next one's snapshot will name the pod. Status says that there is none.
	}
	return err
}

// update tells the newest ztunnel of the pod as it is, unless it is as far as enough already. On error it goes on with
// what it has of the pod.
func (e *Enroller) update(ctx context.Context, p *pod, enough ztunnels.Progress) error {
	account := serviceAccount(e.cfg.Catalog.Snapshot(), p)
	e.mu.Lock()
	if e.current[p.sandbox.UID] == nil {
		e.current[p.sandbox.UID] = p
	}
	in, owns := p.inside, e.current[p.sandbox.UID] == p
	p.next = account // Before ztunnel is told: it asks for the certificate before it acks.
	e.mu.Unlock()
	if !owns {
		return nil
	}
	now := ztunnelPod(p, in.ns, account)
	progress := e.cfg.Ztunnels.Progress(now)
	if progress < enough {
		ctx, cancel := e.untilEnded(ctx, p)
		defer cancel()
		if err := e.cfg.Ztunnels.Update(ctx, now); err != nil {
			return err
		}
	} else if progress < ztunnels.Served {
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	p.account = account
	return nil
}

// repairWorkload writes the pod's file again if it is missing or says something else.
func (e *Enroller) repairWorkload(p *pod) error {
	if e.isReplaced(p) {
		return nil
	}
	want := e.manifest(p)
	have := e.cfg.Catalog.Snapshot().Workloads[controlplane.Name{Namespace: want.Namespace, Name: want.Name}]
	if have != nil && have.UID == want.UID && have.Spec.NodeName == want.Spec.NodeName &&
		have.Spec.ServiceAccountName == want.Spec.ServiceAccountName &&
		slices.EqualFunc(have.Status.PodIPs, want.Status.PodIPs, func(a, b corev1.PodIP) bool { return a.IP == b.IP }) {
		return nil
	}
	return controlplane.WriteWorkload(e.cfg.WorkloadsDir, want)
}
