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
	"github.com/sluice-mesh/sluice/installer/listeners"
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
	dns := e.settingsInForce(p).CaptureDNS
	if dns {
		in.set.CaptureDNS(true) // Before the programs hand queries over; the sockets go after they do so no more.
	}
	if !refusing {
		err = in.set.Repair(in.ns, e.tagProxy, attached)
	}
	err = errors.Join(err, e.tellDNS(ctx, p, in, dns), e.repairPrograms(p, in, attached))
	if !dns && err == nil {
		in.set.CaptureDNS(false)
		err = e.tellDNS(ctx, p, in, false)
	}
	return errors.Join(err, e.repairZtunnel(ctx, p), e.repairWorkload(p))
}

// tellDNS has ztunnel ask for the pod's listeners once more if it does not have those of queries, or still does. One
// that comes later asks of its own accord.
func (e *Enroller) tellDNS(ctx context.Context, p *pod, in *inside, dns bool) error {
	if in.toldDNS == dns || in.set.CapturesDNS() != dns {
		return nil
	}
	err := e.update(ctx, p, ztunnels.Always)
	if err == nil || errors.Is(err, ztunnels.ErrNone) {
		in.toldDNS = dns
		return nil
	}
	return fmt.Errorf("sockets of queries: %w", err)
}

// repairPrograms leaves slots alone: they are the listeners' part.
func (e *Enroller) repairPrograms(p *pod, in *inside, attached *bpf.Pod) error {
	info := attached.Info()
	cfg, err := e.attachment(p, in, info)
	if err != nil {
		return err
	}
	drift := programDrift(attached)
	if drift == nil && covers(info, cfg) {
		return nil
	}
	e.podLog(p).Warn("capture of pod differs; repairing", "drift", drift, "attached", info.Interfaces, "known", cfg.Interfaces)
	again, err := e.cfg.Node.AttachPod(cfg)
	if err != nil {
		return fmt.Errorf("repair: %w", err)
	}
	defer func() { _ = again.Close() }()
	fault("attached anew")
	if err := programDrift(again); err != nil {
		return fmt.Errorf("after repair: %w", err)
	}
	return nil
}

// programDrift is what differs, unless it is empty slots alone.
func programDrift(attached *bpf.Pod) error {
	drift, empty := attached.Check(), 0
	for _, s := range listeners.Names(attached.Info().CaptureDNS) {
		if _, ok, err := attached.ListenerCookie(s); err == nil && !ok && (!s.IsIPv6() || attached.Info().IPv6) {
			empty++
		}
	}
	if len(lines(drift)) <= empty {
		return nil
	}
	return drift
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
	account := e.serviceAccount(p)
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
	if e.cfg.WorkloadsDir == "" || e.isReplaced(p) {
		return nil
	}
	want := e.manifest(p)
	have := e.cfg.Catalog.Snapshot().Workloads[controlplane.Name{Namespace: want.Namespace, Name: want.Name}]
	if have != nil && have.UID == want.UID && have.Spec.NodeName == want.Spec.NodeName &&
		have.Spec.ServiceAccountName == want.Spec.ServiceAccountName &&
		slices.EqualFunc(have.Status.PodIPs, want.Status.PodIPs, func(a, b corev1.PodIP) bool { return a.IP == b.IP }) {
		return nil
	}
	defer fault("published again")
	return e.publish(want)
}
