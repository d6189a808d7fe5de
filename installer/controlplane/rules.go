// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"
)

// Rules say which pods belong into the mesh. The zero value is Istio's labels, with no namespace left out.
type Rules struct {
	// Selectors take the place of Istio's labels: a pod belongs into the mesh if one of them picks it. A pod that is labelled
	// istio.io/dataplane-mode=none never does.
	Selectors []Selector
	// ExcludedNamespaces have no pod in the mesh, whatever their labels.
	ExcludedNamespaces []string
}

// Selector picks pods by their labels and their namespace's; a side that is nil picks all.
type Selector struct {
	text           string
	pod, namespace labels.Selector
}

// ParseSelectors reads a YAML list of {podSelector, namespaceSelector}, as AMBIENT_ENABLEMENT_SELECTOR of ambient section
// 3.6 has it. An entry in which both are missing is an error: it would enrol everything.
func ParseSelectors(text string) ([]Selector, error) {
	var entries []struct {
		PodSelector       *metav1.LabelSelector `json:"podSelector"`
		NamespaceSelector *metav1.LabelSelector `json:"namespaceSelector"`
	}
	if err := yaml.UnmarshalStrict([]byte(text), &entries); err != nil {
		return nil, fmt.Errorf("not a list of {podSelector, namespaceSelector}: %w", err)
	}
	var all []Selector
	for i, e := range entries {
		if e.PodSelector == nil && e.NamespaceSelector == nil {
			return nil, fmt.Errorf("entry %d has neither podSelector nor namespaceSelector", i+1)
		}
		s := Selector{}
		var words []string
		for _, side := range []struct {
			name string
			from *metav1.LabelSelector
			to   *labels.Selector
		}{{"podSelector", e.PodSelector, &s.pod}, {"namespaceSelector", e.NamespaceSelector, &s.namespace}} {
			if side.from == nil {
				continue
			}
			compiled, err := metav1.LabelSelectorAsSelector(side.from)
			if err != nil {
				return nil, fmt.Errorf("entry %d: %s: %w", i+1, side.name, err)
			}
			*side.to = compiled
			words = append(words, side.name+" "+compiled.String())
		}
		s.text = strings.Join(words, " and ")
		all = append(all, s)
	}
	return all, nil
}

func (s Selector) picks(namespace map[string]string, pod *corev1.Pod) bool {
	var own map[string]string
	if pod != nil {
		own = pod.Labels
	}
	return (s.pod == nil || s.pod.Matches(labels.Set(own))) && (s.namespace == nil || s.namespace.Matches(labels.Set(namespace)))
}

// Enrolled tells whether a pod belongs into the mesh by these rules, and why; see the function of this name.
func (r Rules) Enrolled(name string, namespace map[string]string, pod *corev1.Pod) (bool, string) {
	if r.Excludes(name) {
		return false, "namespace " + name + " is excluded from the mesh"
	}
	if len(r.Selectors) == 0 {
		return Enrolled(namespace, pod)
	}
	if never := neverEnrolled(pod); never != "" {
		return false, never
	}
	for _, s := range r.Selectors {
		if s.picks(namespace, pod) {
			return true, "selected by " + s.text
		}
	}
	return false, "no selector picks the pod"
}

// Excludes tells whether no pod of the namespace is ever in the mesh.
func (r Rules) Excludes(namespace string) bool {
	return slices.Contains(r.ExcludedNamespaces, namespace)
}

// MayPick tells whether the labels of a namespace put pods into the mesh: all of them, or those that a podSelector beside
// the namespaceSelector picks.
func (r Rules) MayPick(name string, namespace map[string]string) bool {
	if r.Excludes(name) {
		return false
	}
	for _, s := range r.Selectors {
		if s.namespace != nil && s.namespace.Matches(labels.Set(namespace)) {
			return true
		}
	}
	ok, _ := r.Enrolled(name, namespace, nil)
	return ok
}

// Knows tells whether the namespace is there. One that goes takes no new pods, and another may come by its name.
func (s *Snapshot) Knows(namespace string) bool {
	ns := s.Namespaces[namespace]
	return ns != nil && ns.DeletionTimestamp == nil
}

// MayEnrol tells whether the namespace's own labels, or any pod that is known in it, put something into the mesh.
func (s *Snapshot) MayEnrol(namespace string) bool {
	if ns := s.Namespaces[namespace]; ns != nil && s.Rules.MayPick(namespace, ns.Labels) {
		return true
	}
	if ok, _ := s.Enrolled(namespace, ""); ok {
		return true
	}
	for pod := range s.Pods {
		if pod.Namespace == namespace {
			if ok, _ := s.Enrolled(namespace, pod.Name); ok {
				return true
			}
		}
	}
	return false
}
