// SPDX-License-Identifier: Apache-2.0

package controlplane

import corev1 "k8s.io/api/core/v1"

// Enrolled tells whether a pod belongs into the mesh, and why in words for a log line.
//
// namespace holds the labels of the pod's namespace, nil if nothing is known of it. pod may be nil when nothing is known
// of the pod but its namespace. The pod's own label wins over the namespace's; a pod in the host's network, or with a
// sidecar, is never enrolled.
func Enrolled(namespace map[string]string, pod *corev1.Pod) (bool, string) {
	if pod != nil {
		switch {
		case pod.Spec.HostNetwork:
			return false, "pod uses the host's network"
		case hasKey(pod.Annotations, annotationSidecar):
			return false, "pod has a sidecar (annotation " + annotationSidecar + ")"
		case pod.Labels[labelDataplaneMode] == modeNone:
			return false, "pod label " + labelDataplaneMode + "=" + modeNone
		case pod.Labels[labelDataplaneMode] == modeAmbient:
			return true, "pod label " + labelDataplaneMode + "=" + modeAmbient
		}
	}
	if namespace[labelDataplaneMode] == modeAmbient {
		return true, "namespace label " + labelDataplaneMode + "=" + modeAmbient
	}
	return false, "neither pod nor namespace has label " + labelDataplaneMode + "=" + modeAmbient
}

// Enrolled tells whether the named pod belongs into the mesh, and why. A pod without a manifest is judged by its
// namespace alone.
func (s *Snapshot) Enrolled(namespace, name string) (bool, string) {
	var labels map[string]string
	if ns := s.Namespaces[namespace]; ns != nil {
		labels = ns.Labels
	}
	if pod := s.Pods[Name{Namespace: namespace, Name: name}]; pod != nil {
		return Enrolled(labels, pod.Pod)
	}
	return Enrolled(labels, nil)
}

// Enrolled is the current snapshot's answer.
func (c *Catalog) Enrolled(namespace, name string) (bool, string) {
	return c.Snapshot().Enrolled(namespace, name)
}

func hasKey(m map[string]string, key string) bool {
	_, ok := m[key]
	return ok
}
