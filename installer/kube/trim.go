// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Annotations that decide something; all others are dropped from memory.
var keptAnnotations = []string{"ambient.istio.io/", "istio.io/", "sluice.dev/", "sidecar.istio.io/status", "networking.istio.io/", "kubernetes.io/config."}

// trimForNode leaves of a pod or namespace what its node's agent goes by: about a kilobyte, of often a hundred.
func trimForNode(object any) (any, error) {
	switch o := object.(type) {
	case *corev1.Pod:
		o.ObjectMeta = trimMeta(o.ObjectMeta)
		o.Spec = corev1.PodSpec{NodeName: o.Spec.NodeName, ServiceAccountName: o.Spec.ServiceAccountName, HostNetwork: o.Spec.HostNetwork}
		o.Status = corev1.PodStatus{Phase: o.Status.Phase, PodIP: o.Status.PodIP, PodIPs: o.Status.PodIPs}
	case *corev1.Namespace:
		o.ObjectMeta = trimMeta(o.ObjectMeta)
		o.Spec, o.Status = corev1.NamespaceSpec{}, corev1.NamespaceStatus{}
	}
	return object, nil
}

func trimMeta(m metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name: m.Name, Namespace: m.Namespace, UID: m.UID, ResourceVersion: m.ResourceVersion, Labels: m.Labels,
		Annotations: trimAnnotations(m.Annotations), CreationTimestamp: m.CreationTimestamp, DeletionTimestamp: m.DeletionTimestamp,
	}
}

func trimAnnotations(all map[string]string) map[string]string {
	var kept map[string]string
	for name, value := range all {
		for _, prefix := range keptAnnotations {
			if strings.HasPrefix(name, prefix) {
				if kept == nil {
					kept = map[string]string{}
				}
				kept[name] = value
				break
			}
		}
	}
	return kept
}
