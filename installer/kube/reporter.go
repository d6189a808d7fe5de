// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// annotationRedirection says on a pod whether peers may send it HBONE: ambient section 3.3.
const (
	annotationRedirection = "ambient.istio.io/redirection"
	redirectionEnabled    = "enabled"
	redirectionPending    = "pending"
)

// State is what there is to tell of a pod: the enroller's.
type State struct {
	UID, Namespace, Name string
	// Served is set once peers may send it HBONE.
	Served bool
	// Problem is why the pod is not as it should be; empty when it is.
	Problem string
	// Absent is set if the problem is that nothing of the pod runs on the node, as after a reboot.
	Absent bool
}

// ReporterConfig says what to tell, and of whom. All fields but Logger must be set.
type ReporterConfig struct {
	Client kubernetes.Interface
	Node   *Node
	// States are what the enroller has come to.
	States func() []State
	// Resync is the time between two comparisons when nothing happens; 0 means 30 s.
	Resync time.Duration
	Logger *slog.Logger
}

// Reporter writes to the API what became of this node's pods: the annotation that has peers send HBONE, and events for
// what a user has to know. Safe for concurrent use.
type Reporter struct {
	cfg    ReporterConfig
	log    *slog.Logger
	kicked chan struct{}
	events *events

	mu       sync.Mutex
	refusals map[types.UID]refusal
}

// refusal is why a pod's ADD failed last.
type refusal struct{ namespace, name, reason string }

// NewReporter tells nobody anything before Run.
func NewReporter(cfg ReporterConfig) *Reporter {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Resync == 0 {
		cfg.Resync = 30 * time.Second
	}
	return &Reporter{cfg: cfg, log: cfg.Logger, kicked: make(chan struct{}, 1), events: newEvents(cfg.Client, cfg.Node.cfg.NodeName), refusals: map[types.UID]refusal{}}
}

// Kick has Run compare soon. It does not block.
func (r *Reporter) Kick() {
	select {
	case r.kicked <- struct{}{}:
	default:
	}
}

// Refused has an event tell why a pod's ADD failed. It does not block.
func (r *Reporter) Refused(namespace, name, uid, reason string) {
	r.mu.Lock()
	r.refusals[types.UID(uid)] = refusal{namespace, name, reason}
	r.mu.Unlock()
	r.Kick()
}

// Run compares what is with what the API says of it, after each kick and each change in the API, until ctx ends. What
// fails is tried again, less and less often.
func (r *Reporter) Run(ctx context.Context) error {
	changes, cancel := r.cfg.Node.Subscribe()
	defer cancel()
	defer r.events.stop()
	const first, most = 250 * time.Millisecond, 30 * time.Second
	pause := first
	for {
		next := r.cfg.Resync
		if err := r.report(ctx); err != nil && ctx.Err() == nil {
			r.log.Warn("pods cannot be annotated; peers may not send them HBONE yet", "err", err, "again_in", pause)
			next, pause = pause, min(2*pause, most)
		} else {
			pause = first
		}
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-r.kicked:
		case <-changes:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// report makes one pass over the pods of this node.
func (r *Reporter) report(ctx context.Context) error {
	states := map[types.UID]State{}
	for _, s := range r.cfg.States() {
		states[types.UID(s.UID)] = s
	}
	snapshot := r.cfg.Node.Snapshot()
	present := map[types.UID]bool{}
	var errs []error
	for _, pod := range r.cfg.Node.list() {
		present[pod.UID] = true
		state, known := stateOf(states, pod)
		wanted, reason := snapshot.Enrolled(pod.Namespace, pod.Name)
		errs = append(errs, r.annotate(ctx, pod, annotationFor(state, wanted, pod.Annotations[annotationRedirection])))
		r.events.tell(podRef(pod), noticeFor(pod, state, known, wanted, reason))
	}
	r.tellRefusals()
	r.events.forget(present)
	return errors.Join(errs...)
}

func stateOf(states map[types.UID]State, pod *corev1.Pod) (State, bool) {
	if s, ok := states[pod.UID]; ok {
		return s, true
	}
	s, ok := states[types.UID(pod.Annotations["kubernetes.io/config.mirror"])]
	return s, ok
}

// annotationFor is what the annotation should be, which is now something; empty for none.
//
// A pod that belongs into the mesh keeps what it has while it has no sandbox, as one that ends or whose node was rebooted,
// or a new one comes up: without the annotation peers would send to its address in clear.
func annotationFor(s State, wanted bool, now string) string {
	switch {
	case s.Served:
		return redirectionEnabled
	case wanted && s.Problem != "" && !(s.Absent && now == redirectionEnabled):
		return redirectionPending
	case wanted:
		return now
	}
	return ""
}

// annotate is a merge patch of the status, as ambient section 3.3 has it. The uid in it has the API refuse it for a later
// pod of the same name.
func (r *Reporter) annotate(ctx context.Context, pod *corev1.Pod, want string) error {
	if pod.Annotations[annotationRedirection] == want {
		return nil
	}
	var value any = want
	if want == "" {
		value = nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid": pod.UID, "annotations": map[string]any{annotationRedirection: value},
	}})
	if err != nil {
		return err
	}
	now, err := r.cfg.Client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // It is gone, or another one now.
	}
	if err != nil {
		return err
	}
	r.log.Info("pod annotated", "namespace", pod.Namespace, "pod", pod.Name, "redirection", now.Annotations[annotationRedirection])
	r.cfg.Node.answered(now)
	return nil
}

func (r *Reporter) tellRefusals() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for uid, f := range r.refusals {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: f.namespace, Name: f.name, UID: uid}}
		r.events.tell(podRef(pod), notice{corev1.EventTypeWarning, reasonRefused, "This pod cannot start in the mesh: " + f.reason})
		delete(r.refusals, uid)
	}
}

// Retract takes the annotation off all pods of this node. Call it after Run.
func (r *Reporter) Retract(ctx context.Context) error {
	var errs []error
	for _, pod := range r.cfg.Node.list() {
		errs = append(errs, r.annotate(ctx, pod, ""))
	}
	return errors.Join(errs...)
}
