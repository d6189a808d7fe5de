// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-mesh/sluice/installer/controlplane"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

// State is what there is to tell of a pod to those outside the node.
type State struct {
	UID, Namespace, Name string
	// Served is set once peers may send it HBONE.
	Served bool
	// Problem is why the pod is not as it should be; empty when it is.
	Problem string
	// Absent is set if the problem is that nothing of the pod runs on the node, as after a reboot.
	Absent bool
}

// States are those of all known pods, one for each name and uid. Of several sandboxes of a pod the served one counts.
func (e *Enroller) States() []State {
	e.mu.Lock()
	defer e.mu.Unlock()
	byUID := map[string]State{}
	for _, p := range e.pods {
		s := State{UID: p.sandbox.UID, Namespace: p.sandbox.Namespace, Name: p.sandbox.Name, Served: p.phase == served, Problem: p.problem}
		if before, ok := byUID[s.UID]; !ok || s.Served && !before.Served {
			byUID[s.UID] = s
		}
	}
	for uid, s := range e.unmet {
		if _, met := byUID[uid]; !met {
			byUID[uid] = s.state()
		}
	}
	all := make([]State, 0, len(byUID))
	for _, s := range byUID {
		all = append(all, s)
	}
	return all
}

func (e *Enroller) changed() {
	if e.cfg.Changed != nil {
		e.cfg.Changed()
	}
}

func (e *Enroller) refused(sandbox nodeapi.Pod, err error) {
	if e.cfg.Refused != nil {
		e.cfg.Refused(sandbox.Namespace, sandbox.Name, sandbox.UID, err.Error())
	}
}

// await has the catalog learn of a pod. When that fails, the pod may start only if it is certain to stay out of the mesh,
// or if nothing in its namespace is known to be in it: what the plugin goes by while no agent answers.
func (e *Enroller) await(ctx context.Context, sandbox nodeapi.Pod) error {
	if e.cfg.Await == nil {
		return nil
	}
	err := e.cfg.Await(ctx, sandbox.Namespace, sandbox.Name, sandbox.UID)
	if err == nil {
		return nil
	}
	s := e.cfg.Catalog.Snapshot()
	excluded := s.Rules.Excludes(sandbox.Namespace)
	if !s.Knows(sandbox.Namespace) && !excluded {
		return fmt.Errorf("nothing is known of namespace %s: %w", sandbox.Namespace, err)
	}
	if excluded || !s.MayEnrol(sandbox.Namespace) {
		e.log.Warn("pod starts outside the mesh although the API does not tell of it", "namespace", sandbox.Namespace, "pod", sandbox.Name, "err", err)
		return nil
	}
	return fmt.Errorf("namespace %s has pods in the mesh, and nothing is known of this one: %w", sandbox.Namespace, err)
}

// publish tells the control planes that share the folder of workloads of a served pod.
func (e *Enroller) publish(pod *corev1.Pod) error {
	if e.cfg.WorkloadsDir == "" {
		return nil
	}
	return controlplane.WriteWorkload(e.cfg.WorkloadsDir, pod)
}

func (e *Enroller) retract(namespace, name string) error {
	if e.cfg.WorkloadsDir == "" {
		return nil
	}
	return controlplane.RemoveWorkload(e.cfg.WorkloadsDir, e.cfg.NodeName, namespace, name)
}
