// SPDX-License-Identifier: Apache-2.0

package controlplane

import corev1 "k8s.io/api/core/v1"

// Enrolled tells whether a pod belongs into the mesh, and why in words for a log line.
//
// namespace holds the labels of the pod's namespace, nil if nothing is known of it. pod may be nil when nothing is known
// of the pod but its namespace. The pod's own label wins over the namespace's; a pod in the host's network, or with a
// sidecar, is never enrolled.
func Enrolled(namespace map[string]string, pod *corev1.Pod) (bool, string) {
	if never := neverEnrolled(pod); never != "" {
		return false, never
	}
	if pod != nil && pod.Labels[labelDataplaneMode] == modeAmbient {
		return true, "pod label " + labelDataplaneMode + "=" + modeAmbient
	}
	if namespace[labelDataplaneMode] == modeAmbient {
		return true, "namespace label " + labelDataplaneMode + "=" + modeAmbient
	}
	return false, "neither pod nor namespace has label " + labelDataplaneMode + "=" + modeAmbient
}

// neverEnrolled is why a pod is not enrolled whatever selects it; empty if nothing of it forbids that.
func neverEnrolled(pod *corev1.Pod) string {
	switch {
	case pod == nil:
		return ""
	case pod.Spec.HostNetwork:
		return "pod uses the host's network"
	case hasKey(pod.Annotations, annotationSidecar):
		return "pod has a sidecar (annotation " + annotationSidecar + ")"
	case pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed:
		return "pod has finished"
	case pod.Labels[labelDataplaneMode] == modeNone:
		return "pod label " + labelDataplaneMode + "=" + modeNone
	}
	return ""
}

// Enrolled tells whether the named pod belongs into the mesh, and why. A pod without a manifest is judged by its
// namespace alone.
func (s *Snapshot) Enrolled(namespace, name string) (bool, string) {
	var labels map[string]string
	if ns := s.Namespaces[namespace]; ns != nil {
		labels = ns.Labels
	}
	if pod := s.Pods[Name{Namespace: namespace, Name: name}]; pod != nil {
		return s.Rules.Enrolled(namespace, labels, pod.Pod)
	}
	return s.Rules.Enrolled(namespace, labels, nil)
}

// Enrolled is the current snapshot's answer.
func (c *Catalog) Enrolled(namespace, name string) (bool, string) {
	return c.Snapshot().Enrolled(namespace, name)
}

func hasKey(m map[string]string, key string) bool {
	_, ok := m[key]
	return ok
}
