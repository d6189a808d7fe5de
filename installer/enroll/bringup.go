// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/installer/controlplane"
	"github.com/sluice-mesh/sluice/installer/ztunnels"
	"github.com/sluice-mesh/sluice/internal/netns"
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
	e.setProblem(p, "")
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
	err = in.set.Use(func(fds map[bpf.Slot]int) (err error) {
		cfg := podConfig(p, e.cfg.CaptureAll)
		cfg.Grandfather, cfg.Listeners = true, fds
		attached, err = e.cfg.Node.AttachPod(cfg)
		return err
	})
	return attached, err
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
	p.inside, p.account, p.phase, p.since = in, account, serving, time.Now()
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
		if other != p && other.workload() == p.workload() && other.inMeshLocked() {
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

func podConfig(p *pod, captureAll bool) bpf.PodConfig {
	c := bpf.PodConfig{
		ID: pinID(p.id()), UID: p.sandbox.UID, Namespace: p.sandbox.Namespace, Name: p.sandbox.Name, ContainerID: p.id(),
		Network: p.sandbox.Network, NetnsPath: p.sandbox.Netns, CaptureAll: captureAll,
	}
	for _, i := range p.sandbox.Interfaces {
		if i.Name == "lo" {
			continue
		}
		c.Interfaces = append(c.Interfaces, i.Name)
		if i.HostIfindex != 0 {
			c.HostIfindexes = append(c.HostIfindexes, i.HostIfindex)
		}
	}
	return c
}

func ztunnelPod(p *pod, ns *netns.NS, account string) ztunnels.Pod {
	return ztunnels.Pod{
		UID: p.sandbox.UID, Namespace: p.sandbox.Namespace, Name: p.sandbox.Name, ServiceAccount: account, Netns: ns,
	}
}

const defaultServiceAccount = "default"

func serviceAccount(s *controlplane.Snapshot, p *pod) string {
	m := s.Pods[controlplane.Name{Namespace: p.sandbox.Namespace, Name: p.sandbox.Name}]
	if m == nil || m.Spec.ServiceAccountName == "" {
		return defaultServiceAccount
	}
	return m.Spec.ServiceAccountName
}

// manifest is the pod as the control planes are to publish it.
func (e *Enroller) manifest(p *pod) *corev1.Pod {
	s := e.cfg.Catalog.Snapshot()
	m := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: p.sandbox.Namespace, Name: p.sandbox.Name, UID: types.UID(p.sandbox.UID),
	}}
	if user := s.Pods[controlplane.Name{Namespace: p.sandbox.Namespace, Name: p.sandbox.Name}]; user != nil {
		m.Labels = user.Labels
	}
	m.Spec.NodeName, m.Spec.ServiceAccountName = e.cfg.NodeName, serviceAccount(s, p)
	m.Status.Phase = corev1.PodRunning
	for _, a := range p.sandbox.Addresses() {
		m.Status.PodIPs = append(m.Status.PodIPs, corev1.PodIP{IP: a.String()})
	}
	if len(m.Status.PodIPs) > 0 {
		m.Status.PodIP = m.Status.PodIPs[0].IP
	}
	return m
}
