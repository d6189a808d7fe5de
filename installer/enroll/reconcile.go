// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Depth is how closely Reconcile looks.
type Depth int

const (
	// Wishes compares the pods' phases with the catalog. It touches only pods that are to change.
	Wishes Depth = iota
	// Everything also looks at each pod's namespace, programs and listeners, and repairs them.
	Everything
)

// Run compares what is with what is wanted until ctx ends: the wishes after each Kick and each change of the catalog
// that arrives on changes, everything every Resync. Nothing is taken apart when it returns.
func (e *Enroller) Run(ctx context.Context, changes <-chan struct{}) {
	tick := time.NewTicker(e.cfg.Resync)
	defer tick.Stop()
	depth := Everything
	for {
		e.Reconcile(ctx, depth)
		depth = Wishes
		select {
		case <-ctx.Done():
			return
		case <-e.kick:
		case <-changes:
		case <-tick.C:
			depth = Everything
		}
	}
}

// Reconcile makes one pass over all pods. What goes wrong is logged when it is new, kept for status, and tried again in
// the next pass.
func (e *Enroller) Reconcile(ctx context.Context, depth Depth) {
	e.limitWaiting()
	e.meetRunning(ctx)
	for _, p := range e.all() {
		if ctx.Err() != nil {
			return
		}
		problem := ""
		if err := e.reconcilePod(ctx, p, depth); err != nil {
			problem = err.Error()
		}
		if e.setProblem(p, problem, depth) && problem != "" {
			e.podLog(p).Warn("pod is not as it should be", "problem", problem)
		}
	}
	if depth < Everything {
		return
	}
	e.repairHost()
	if err := e.dropStaleWorkloads(); err != nil {
		e.log.Warn("take back what was published of pods that are gone", "err", err)
	}
	// Last: a live pod whose programs somebody detached was repaired above, and is no garbage.
	if err := e.collect(); err != nil {
		e.log.Warn("collect", "err", err)
	}
}

func (e *Enroller) reconcilePod(ctx context.Context, p *pod, depth Depth) error {
	defer e.workloads.lock(p.workload())()
	if e.get(p.id()) != p {
		return nil
	}
	if f := e.fateOf(p); f != stays {
		if depth < Everything {
			return nil
		}
		return e.forget(ctx, p, f == doomedWithPrograms)
	}
	var unseen error
	if depth == Everything {
		var gone bool
		if gone, unseen = e.look(p); gone {
			e.podLog(p).Info("pod is gone", "netns", p.sandbox.Netns)
			return e.forget(ctx, p, true)
		}
	}
	return errors.Join(unseen, e.bringAbout(ctx, p, depth))
}

// bringAbout takes the next step, if there is one, from what the pod is to what is wanted of it.
func (e *Enroller) bringAbout(ctx context.Context, p *pod, depth Depth) (err error) {
	snapshot := e.cfg.Catalog.Snapshot()
	wanted, reason := snapshot.Enrolled(p.sandbox.Namespace, p.sandbox.Name)
	now := e.phaseOf(p)
	_, successor := catalogPod(snapshot, p.sandbox)
	if successor { // what is said now is said of another pod
		wanted, reason = now != known && now != leaving, "as before: the API tells of a later pod of that name"
	}
	if wanted && now == served && !successor {
		changed, mistake := e.followAnnotations(p)
		if changed {
			depth = Everything
		}
		defer func() { err = errors.Join(mistake, err) }()
	}
	switch {
	case now == admitted && !e.admittedTooLong(p):
		return nil
	case wanted && now == served && depth == Everything:
		return e.repair(ctx, p)
	case wanted && now == served:
		return errors.Join(e.repairZtunnel(ctx, p), e.repairWorkload(p))
	case wanted && now == lost:
		return e.findAgain(ctx, p)
	case wanted:
		return e.enrolRunning(ctx, p, reason)
	case now == leaving && depth < Everything:
		return nil
	case now != known:
		return e.unenrol(ctx, p, reason)
	}
	return nil
}

func (e *Enroller) admittedTooLong(p *pod) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return time.Since(p.since) > e.cfg.AdmitTimeout
}

// enrolRunning takes a pod into the mesh that started outside of it. It waits for a ztunnel: until there is one the pod
// is better off with the connections it has.
func (e *Enroller) enrolRunning(ctx context.Context, p *pod, reason string) error {
	if len(p.sandbox.Addresses()) == 0 {
		return fmt.Errorf("not enrolled: %w", errNoAddress)
	}
	if e.cfg.Ztunnels.Connected() == 0 {
		return errors.New("to be enrolled; waiting for a ztunnel")
	}
	settings, mistake := settingsOf(e.cfg.Settings, annotationsOf(e.cfg.Catalog.Snapshot(), p.sandbox))
	if mistake != nil { // Better in the mesh with less let pass than outside.
		mistake = fmt.Errorf("enrolled without what is wrong in its settings: %w", mistake)
	}
	e.setSettings(p, settings)
	e.podLog(p).Info("enrolling running pod", "reason", reason)
	ctx, cancel := e.untilEnded(ctx, p)
	defer cancel()
	return errors.Join(mistake, e.bringUp(ctx, p, true))
}

// followAnnotations has the next repair give the pod the settings that its annotations ask for now. Of bad annotations it
// says what is wrong; the settings then stay as they are.
func (e *Enroller) followAnnotations(p *pod) (changed bool, err error) {
	wanted, err := settingsOf(e.cfg.Settings, annotationsOf(e.cfg.Catalog.Snapshot(), p.sandbox))
	if err != nil {
		return false, fmt.Errorf("settings stay as they are: %w", err)
	}
	if e.settingsInForce(p).Equal(wanted) {
		return false, nil
	}
	e.podLog(p).Info("settings of pod change", "from", e.settingsInForce(p), "to", wanted)
	e.setSettings(p, wanted)
	return true, nil
}

func (e *Enroller) unenrol(ctx context.Context, p *pod, reason string) error {
	if err := e.tearDown(ctx, p, true); err != nil {
		err = fmt.Errorf("leaving the mesh: %w", err)
		e.setProblem(p, err.Error(), Everything)
		return err
	}
	e.setProblem(p, "", Everything)
	e.podLog(p).Info("pod taken out of the mesh", "reason", reason)
	return nil
}

// limitWaiting closes all listeners once no ztunnel has been there for too long, so that clients are refused instead of
// kept waiting. A ztunnel that connects asks for the listeners, which makes them anew.
func (e *Enroller) limitWaiting() {
	down := e.cfg.Ztunnels.Down()
	over := e.cfg.ProxyDownLimit > 0 && down > e.cfg.ProxyDownLimit
	e.mu.Lock()
	changed := e.refusing != over
	e.refusing = over
	e.mu.Unlock()
	if changed && over {
		e.log.Error("no ztunnel for too long: connections of enrolled pods are refused from now on", "down", down.Round(time.Second))
	}
	if !over {
		return
	}
	fault("about to refuse")
	for _, p := range e.all() {
		e.mu.Lock()
		in := p.inside
		e.mu.Unlock()
		if in != nil {
			// One that has connected meanwhile is not to be handed what is closed next.
			in.set.LetGo(func() bool { return e.cfg.Ztunnels.Connected() > 0 })
		}
	}
}
