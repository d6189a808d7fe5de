// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-mesh/sluice/installer/running"
)

// A pod that was not found is looked for again after a pause that doubles from the first to the most.
const firstSearchPause, mostSearchPause = time.Second, 2 * time.Minute

// search is what became of looking for a pod.
type search struct {
	pod     *corev1.Pod
	problem string
	absent  bool
	pause   time.Duration
	next    time.Time
}

func (s search) state() State {
	return State{UID: string(s.pod.UID), Namespace: s.pod.Namespace, Name: s.pod.Name, Problem: s.problem, Absent: s.absent}
}

// meetRunning gets to know the wanted pods that run although no ADD has told of them. From there on they are as any pod
// whose ADD said that it stays out, and whose label was set later.
func (e *Enroller) meetRunning(ctx context.Context) {
	if e.cfg.Find == nil {
		return
	}
	wanted := e.strangers()
	e.dropSearches(wanted)
	var due []*corev1.Pod
	for _, p := range wanted {
		if e.isSearchDue(p) {
			due = append(due, p)
		}
	}
	if len(due) == 0 {
		return
	}
	for i, found := range e.cfg.Find(ctx, due) {
		if ctx.Err() != nil {
			return
		}
		err := found.Err
		if err == nil {
			err = e.meetFound(found)
		}
		e.setSearch(due[i], err)
	}
}

// strangers are this node's wanted pods that run and that nothing is known of. The API says that a pod runs only after its
// ADD is over.
func (e *Enroller) strangers() []*corev1.Pod {
	s := e.cfg.Catalog.Snapshot()
	known := map[string]bool{}
	for _, p := range e.all() {
		known[p.sandbox.UID], known[p.workload()] = true, true
	}
	var all []*corev1.Pod
	for name, p := range s.Pods {
		if p.Status.Phase != corev1.PodRunning || p.DeletionTimestamp != nil || p.Spec.NodeName != e.cfg.NodeName ||
			known[string(p.UID)] || known[name.String()] {
			continue
		}
		if ok, _ := s.Enrolled(name.Namespace, name.Name); ok {
			all = append(all, p.Pod)
		}
	}
	return all
}

// meetFound records the sandbox as its ADD would have, unless that has come meanwhile.
func (e *Enroller) meetFound(found running.Found) error {
	sandbox := found.Sandbox
	defer e.workloads.lock(sandbox.Namespace + "/" + sandbox.Name)()
	if e.get(sandbox.ContainerID) != nil {
		return nil
	}
	at, err := namespaceAt(sandbox.Netns)
	if err != nil {
		return err
	}
	p, err := e.meet(sandbox, at, false)
	if err == nil {
		e.podLog(p).Info("pod found that runs since before the agent", "netns", sandbox.Netns, "addresses", sandbox.Addresses())
	}
	return err
}

func (e *Enroller) isSearchDue(p *corev1.Pod) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return !time.Now().Before(e.unmet[string(p.UID)].next)
}

// setSearch remembers that a pod was not found; err is nil for one that was.
func (e *Enroller) setSearch(p *corev1.Pod, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	before, searched := e.unmet[string(p.UID)]
	if err == nil {
		delete(e.unmet, string(p.UID))
		e.changed()
		return
	}
	pause := firstSearchPause
	if searched {
		pause = min(2*before.pause, mostSearchPause)
	}
	problem := fmt.Sprintf("this pod ran before the agent came to its node, and stays outside the mesh until it is found; if this lasts, delete the pod so that it is started anew (%v)", err)
	e.unmet[string(p.UID)] = search{pod: p, problem: problem, absent: errors.Is(err, running.ErrAbsent), pause: pause, next: time.Now().Add(pause)}
	if problem != before.problem {
		e.log.Warn("running pod is wanted in the mesh and was not found", "namespace", p.Namespace, "pod", p.Name, "uid", p.UID, "err", err)
		e.changed()
	}
}

// dropSearches forgets those for pods that are not looked for any more.
func (e *Enroller) dropSearches(wanted []*corev1.Pod) {
	still := map[string]bool{}
	for _, p := range wanted {
		still[string(p.UID)] = true
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for uid := range e.unmet {
		if !still[uid] {
			delete(e.unmet, uid)
			e.changed()
		}
	}
}
