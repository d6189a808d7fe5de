// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"context"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/installer/controlplane"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
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
	before := e.phaseOf(p)
	var u undo
	defer func() {
		if err != nil {
			u.run()
			e.setPhase(p, before)
		}
	}()
	in, err := openInside(p)
	if err != nil {
		return err
	}
	u.add(in.close)
	if err := in.set.Open(in.ns, e.tagProxy); err != nil {
		return err
	}
	if err := e.install(p, in, attach, &u); err != nil {
		return err
	}
	account := serviceAccount(e.cfg.Catalog.Snapshot(), p)
	e.announceInside(p, in, account)
	u.add(func() { e.retractInside(p) })

	if err := e.cfg.Ztunnels.Add(ctx, ztunnelPod(p, in.ns, account)); err != nil {
		return err
	}
	u.add(func() { e.removeFromZtunnels(p) })
	if err := controlplane.WriteWorkload(e.cfg.WorkloadsDir, e.manifest(p)); err != nil {
		return err
	}
	e.setPhase(p, served)
	e.setProblem(p, "", Everything)
	e.podLog(p).Info("pod enrolled", "running", attach, "serviceAccount", account, "addresses", p.sandbox.Addresses())
	return nil
}

// install attaches the programs if asked to, checks that the pins are of the namespace we opened, and fills the slots.
func (e *Enroller) install(p *pod, in *inside, attach bool, u *undo) error {
	var attached *bpf.Pod
	var err error
	if attach {
		attached, err = e.attachRunning(p, in)
		if err == nil {
			u.add(func() { e.detach(p) })
		}
	} else {
		attached, err = e.cfg.Node.Pod(pinID(p.id()))
	}
	if err != nil {
		return err
	}
	defer func() { _ = attached.Close() }()
	if info := attached.Info(); info.NetnsCookie != p.netns.Cookie {
		return fmt.Errorf("pins of pod are for network namespace %d, the pod's is %d", info.NetnsInode, p.netns.Inode)
	}
	return in.set.Install(attached)
}

// attachRunning fills the slots before the first program runs, so that no new connection of the pod is refused, and
// leaves its open connections alone.
func (e *Enroller) attachRunning(p *pod, in *inside) (attached *bpf.Pod, err error) {
	interfaces, err := e.interfacesInside(p, in)
	if err != nil {
		return nil, err
	}
	err = in.set.Use(func(fds map[bpf.Slot]int) (err error) {
		cfg := podConfig(p, interfaces, e.cfg.CaptureAll)
		cfg.Grandfather, cfg.Listeners = true, fds
		attached, err = e.cfg.Node.AttachPod(cfg)
		return err
	})
	return attached, err
}

// interfacesInside is what to attach to and still there: the DEL of a second network takes its interface away without
// asking the agent.
func (e *Enroller) interfacesInside(p *pod, in *inside) ([]nodeapi.Interface, error) {
	links, err := in.links()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(e.interfacesOf(p), func(i nodeapi.Interface) bool {
		return !slices.ContainsFunc(links, func(l net.Interface) bool { return l.Name == i.Name })
	}), nil
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
	if e.current[p.sandbox.UID] == p {
		delete(e.current, p.sandbox.UID)
	}
}
