// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"
)

// unseenGrace is how old a pod has to be before it counts as one whose start the agent missed.
const unseenGrace = time.Minute

// maxMessage is what the API admits.
const maxMessage = 1024

// Reasons of events.
const (
	reasonRefused  = "MeshRefused"
	reasonProblem  = "MeshProblem"
	reasonNotIn    = "NotInMesh"
	modeLabel      = "istio.io/dataplane-mode"
	eventComponent = "sluice-installer"
)

// notice is an event that is due; the zero value is none.
type notice struct{ kind, reason, message string }

// noticeFor is what a user should know of a pod, judging by what is so at this moment.
func noticeFor(pod *corev1.Pod, state State, known, wanted bool, reason string) notice {
	finished := pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
	switch {
	case finished || pod.DeletionTimestamp != nil:
		return notice{}
	case known && state.Problem != "":
		return notice{corev1.EventTypeWarning, reasonProblem, "Mesh: " + state.Problem}
	case !wanted && pod.Labels[modeLabel] == "ambient":
		return notice{corev1.EventTypeWarning, reasonNotIn, "This pod asks for the mesh by its label, but stays out of it: " + reason}
	case wanted && !known && pod.Status.Phase == corev1.PodRunning && time.Since(pod.CreationTimestamp.Time) > unseenGrace:
		return notice{corev1.EventTypeWarning, reasonNotIn, "This pod belongs into the mesh (" + reason + "), but was started before the mesh was installed on its node: delete it so that it is started anew"}
	}
	return notice{}
}

// events tells each notice of an object once, until there is another. Used by one goroutine.
type events struct {
	broadcaster record.EventBroadcaster
	recorder    record.EventRecorder
	told        map[types.UID]notice
}

func newEvents(client kubernetes.Interface, node string) *events {
	b := record.NewBroadcaster()
	b.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: client.CoreV1().Events("")})
	source := corev1.EventSource{Component: eventComponent, Host: node}
	return &events{broadcaster: b, recorder: b.NewRecorder(scheme.Scheme, source), told: map[types.UID]notice{}}
}

func podRef(pod *corev1.Pod) *corev1.ObjectReference {
	return &corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID}
}

func (e *events) tell(ref *corev1.ObjectReference, n notice) {
	if n == (notice{}) || e.told[ref.UID] == n {
		return
	}
	e.told[ref.UID] = n
	e.recorder.Event(ref, n.kind, n.reason, n.message[:min(len(n.message), maxMessage)])
}

// forget drops what was told of objects that are gone.
func (e *events) forget(present map[types.UID]bool) {
	for uid := range e.told {
		if !present[uid] {
			delete(e.told, uid)
		}
	}
}

func (e *events) stop() { e.broadcaster.Shutdown() }
