// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// picked is by the labels of the pod, of its namespace, or by both.
const picked = `
- podSelector: {matchLabels: {mesh: "yes"}}
- namespaceSelector: {matchExpressions: [{key: team, operator: In, values: [a, b]}]}
- podSelector: {matchExpressions: [{key: tier, operator: Exists}]}
  namespaceSelector: {matchLabels: {staged: "true"}}
`

func TestSelectorsTakeThePlaceOfLabels(t *testing.T) {
	selectors, err := ParseSelectors(picked)
	if err != nil {
		t.Fatal(err)
	}
	type labels = map[string]string
	ambient, none := labels{"istio.io/dataplane-mode": "ambient"}, labels{"istio.io/dataplane-mode": "none"}
	for name, tt := range map[string]struct {
		in         string // name of the namespace
		namespace  labels
		pod        labels
		edit       func(*corev1.Pod)
		byDefault  bool
		bySelector bool
		why        string // part of the reason by selectors
	}{
		"no labels":                          {why: "no selector picks"},
		"Istio's label of the pod":           {pod: ambient, byDefault: true, why: "no selector picks"},
		"Istio's label of the namespace":     {namespace: ambient, byDefault: true, why: "no selector picks"},
		"a label of the pod":                 {pod: labels{"mesh": "yes"}, bySelector: true, why: "podSelector mesh=yes"},
		"another value":                      {pod: labels{"mesh": "no"}, why: "no selector picks"},
		"a label of the namespace":           {namespace: labels{"team": "b"}, bySelector: true, why: "namespaceSelector team in (a,b)"},
		"the pod's label on the namespace":   {namespace: labels{"mesh": "yes"}, why: "no selector picks"},
		"the namespace's label on the pod":   {pod: labels{"team": "a"}, why: "no selector picks"},
		"both sides":                         {namespace: labels{"staged": "true"}, pod: labels{"tier": "x"}, bySelector: true, why: "podSelector tier and namespaceSelector staged=true"},
		"one side of two, pod":               {pod: labels{"tier": "x"}, why: "no selector picks"},
		"one side of two, namespace":         {namespace: labels{"staged": "true"}, why: "no selector picks"},
		"opted out":                          {namespace: labels{"team": "a"}, pod: none, why: "dataplane-mode=none"},
		"the namespace's none, picked by it": {namespace: labels{"team": "a", "istio.io/dataplane-mode": "none"}, bySelector: true},
		"opted out of a labelled namespace":  {namespace: ambient, pod: none, why: "dataplane-mode=none"},
		"in an excluded namespace":           {in: "kube-system", namespace: labels{"team": "a", "istio.io/dataplane-mode": "ambient"}, why: "excluded"},
		"the host's network": {namespace: labels{"team": "a"}, pod: ambient, why: "host's network",
			edit: func(p *corev1.Pod) { p.Spec.HostNetwork = true }},
		"a sidecar": {namespace: labels{"team": "a"}, pod: ambient, why: "sidecar",
			edit: func(p *corev1.Pod) { p.Annotations = labels{"sidecar.istio.io/status": "{}"} }},
		"finished": {namespace: labels{"team": "a"}, pod: ambient, why: "finished",
			edit: func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }},
	} {
		in := tt.in
		if in == "" {
			in = "shop"
		}
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: in, Name: "web", Labels: tt.pod}}
		if tt.edit != nil {
			tt.edit(pod)
		}
		r := Rules{ExcludedNamespaces: []string{"kube-system"}}
		if got, why := r.Enrolled(in, tt.namespace, pod); got != tt.byDefault {
			t.Errorf("%s, without selectors: got %v (%s), want %v", name, got, why, tt.byDefault)
		}
		r.Selectors = selectors
		if got, why := r.Enrolled(in, tt.namespace, pod); got != tt.bySelector || !strings.Contains(why, tt.why) {
			t.Errorf("%s: got %v (%s), want %v (%s)", name, got, why, tt.bySelector, tt.why)
		}
	}
}

func TestSelectorsThatSayNothingAreRefused(t *testing.T) {
	for text, want := range map[string]string{
		"- {}":                    "entry 1 has neither",
		"- podSelector: {}\n- {}": "entry 2 has neither",
		"- podSelectors: {}":      "unknown field",
		"podSelector: {}":         "not a list",
		"- podSelector: {matchExpressions: [{key: a, operator: Like}]}": "entry 1: podSelector",
		"- namespaceSelector: {matchLabels: {\"-\": x}}":                "entry 1: namespaceSelector",
		"[": "not a list",
	} {
		if got, err := ParseSelectors(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v and error %v, want %q", text, got, err, want)
		}
	}
}

// A namespace whose labels one side of a selector picks may have pods in the mesh before any is known.
func TestNamespacesThatMayHavePodsInTheMesh(t *testing.T) {
	selectors, err := ParseSelectors(picked)
	if err != nil {
		t.Fatal(err)
	}
	s := NewSet(Rules{Selectors: selectors, ExcludedNamespaces: []string{"system"}}, nil)
	for name, test := range map[string]struct {
		labels map[string]string
		may    bool
	}{
		"team":   {map[string]string{"team": "a"}, true},
		"staged": {map[string]string{"staged": "true"}, true}, // those of its pods that have a tier
		"plain":  {map[string]string{"istio.io/dataplane-mode": "ambient"}, false},
		"system": {map[string]string{"team": "a", "staged": "true"}, false},
	} {
		if err := s.Put(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: test.labels}}); err != nil {
			t.Fatal(err)
		}
		s.Publish()
		if got := s.Snapshot().MayEnrol(name); got != test.may {
			t.Errorf("%s: got %v, want %v", name, got, test.may)
		}
	}
}
