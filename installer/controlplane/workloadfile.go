// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/sluice-mesh/sluice/internal/atomicfile"
)

// WriteWorkload puts a pod that this node serves into the workloads folder, from which the control planes of all nodes
// that share the folder publish it as reachable by HBONE.
//
// pod needs a name, a namespace, spec.nodeName and status.podIPs; the annotation that stands for "served" is added here.
func WriteWorkload(dir string, pod *corev1.Pod) error {
	pod = pod.DeepCopy()
	pod.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
	metav1.SetMetaDataAnnotation(&pod.ObjectMeta, annotationRedirect, redirectEnabled)
	data, err := yaml.Marshal(pod)
	if err != nil {
		return fmt.Errorf("workload %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	path := workloadPath(dir, pod.Spec.NodeName, pod.Namespace, pod.Name)
	if _, err := parseFile(path, data); err != nil {
		return err // before it reaches the folder: no other node could read it either
	}
	return atomicfile.Write(path, data, 0o600)
}

// RemoveWorkload takes a pod of the node out of the workloads folder. It succeeds if it is not there.
func RemoveWorkload(dir, node, namespace, name string) error {
	if err := os.Remove(workloadPath(dir, node, namespace, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("workload %s/%s: %w", namespace, name, err)
	}
	return nil
}

// workloadPath names the file. The node is part of the name, so that a node which forgets a pod late does not take away
// what the node it moved to wrote. "_" is in none of the names.
func workloadPath(dir, node, namespace, name string) string {
	return filepath.Join(dir, fmt.Sprintf("%s_%s_%s.yaml", node, namespace, name))
}
