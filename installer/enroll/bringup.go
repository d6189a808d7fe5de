// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sluice-mesh/sluice/bpf"
)

// undo is what has to be done, last first, if the next step fails.
type undo []func()

func (u *undo) add(f func()) { *u = append(*u, f) }

func (u undo) run() {
	for _, f := range slices.Backward(u) {
		f()
	}
}

// bringUp takes a pod into the mesh; the caller holds its workload's lock.
//
// Order: listeners exist before anything is steered to them, ztunnel accepts before peers are told (the workload file)
// that they may come. attach is set for a pod that runs already, whose programs are not there yet: its open connections
// are then left alone. On error everything done here is undone and the pod is as before.
func (e *Enroller) bringUp(ctx context.Context, p *pod, attach bool) (err error) {
	back := e.rememberPhase(p)
	var u undo
	defer func() {
		if err != nil {
			u.run()
			back()
		}
	}()
	in, err := openInside(p)
	if err != nil {
		return err
	}
	u.add(in.close)
	in.captureDNS(e.settingsInForce(p).CaptureDNS)
	if err := in.set.Open(in.ns, e.tagProxy); err != nil {
		return err
	}
	fault("listeners made")
	if err := e.install(p, in, attach, &u); err != nil {
		return err
	}
	fault("listeners installed")
	account := e.serviceAccount(p)
	e.announceInside(p, in, account)
	u.add(func() { e.retractInside(p) })

	if err := e.cfg.Ztunnels.Add(ctx, ztunnelPod(p, in.ns, account)); err != nil {
		return err
	}
	u.add(func() { e.removeFromZtunnels(p) })
	fault("ztunnel serves")
	if err := e.publish(e.manifest(p)); err != nil {
		return err
	}
	fault("published")
	e.setPhase(p, served)
	e.setProblem(p, "", Everything)
	e.podLog(p).Info("pod enrolled", "running", attach, "serviceAccount", account, "addresses", p.sandbox.Addresses())
	return nil
}

// install attaches the programs if asked to and they are not there, has them cover all that is known of the pod, and
// fills the slots.
func (e *Enroller) install(p *pod, in *inside, attach bool, u *undo) error {
	attached, err := e.cfg.Node.Pod(pinID(p.id()))
	if err == nil && attached.Info().NetnsCookie != p.netns.Cookie {
		err = fmt.Errorf("pins of pod are for network namespace %d, the pod's is %d: %w", attached.Info().NetnsInode, p.netns.Inode, bpf.ErrNotAttached)
		_ = attached.Close()
	}
	switch {
	case err == nil:
		attached, err = e.cover(p, in, attached)
	case attach && errors.Is(err, bpf.ErrNotAttached):
		attached, err = e.attachRunning(p, in)
		if err == nil {
			u.add(func() { e.detach(p) })
		}
	}
	if err != nil {
		return err
	}
	defer func() { _ = attached.Close() }()
	return in.set.Install(attached)
}

// attachRunning fills the slots before the first program runs, so that no new connection of the pod is refused, and
// leaves its open connections alone.
func (e *Enroller) attachRunning(p *pod, in *inside) (attached *bpf.Pod, err error) {
	cfg, err := e.attachment(p, in, bpf.PodInfo{})
	if err != nil {
		return nil, err
	}
	err = in.set.Use(func(fds map[bpf.Slot]int) (err error) {
		cfg.Grandfather, cfg.Listeners = true, fds
		attached, err = e.cfg.Node.AttachPod(cfg)
		return err
	})
	fault("attached")
	return attached, err
}

// rememberPhase returns what puts the pod's phase back, and since when it has been in it: a pod that was admitted for too
// long still is.
func (e *Enroller) rememberPhase(p *pod) (back func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	phase, since := p.phase, p.since
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		p.phase, p.since = phase, since
	}
}

func (e *Enroller) detach(p *pod) {
	if err := e.cfg.Node.DetachPod(pinID(p.id())); err != nil {
		e.podLog(p).Error("detach", "err", err)
	}
}

// announceInside lets ztunnel find the pod when it asks for its listeners and certificates, which it does before it
// acks.
func (e *Enroller) announceInside(p *pod, in *inside, account string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	p.inside, p.account, p.next, p.phase, p.since = in, account, account, serving, time.Now()
	e.current[p.sandbox.UID] = p
}

func (e *Enroller) retractInside(p *pod) {
	e.mu.Lock()
	defer e.mu.Unlock()
	p.inside, p.phase, p.since = nil, known, time.Now()
	e.changed()
	if e.current[p.sandbox.UID] == p {
		delete(e.current, p.sandbox.UID)
	}
}
