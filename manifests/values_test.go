// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

func TestBadValuesAreRefused(t *testing.T) {
	readAll(t)
	program := built(t, "k8s/helm")
	for name, set := range map[string]string{
		"unknown value":         "agent.nodeselector.a=b",
		"unknown control plane": "controlPlane.mode=consul",
		"relative folder":       "cni.confDir=etc/cni",
		"short grace period":    "ztunnel.terminationGracePeriodSeconds=5",
		"number for a switch":   "podMonitor.enabled=1",
		"digest that is none":   "image.digests.agent=latest",
	} {
		t.Run(name, func(t *testing.T) {
			out, err := exec.Command(program, chartArgs("--set", set)...).CombinedOutput()
			if err == nil || !strings.Contains(string(out), "schema") {
				t.Errorf("%s: got %v, want a refusal by the schema\n%s", set, err, out)
			}
		})
	}
}

func TestChartPassesHelmsLint(t *testing.T) {
	readAll(t)
	out, err := exec.Command(built(t, "k8s/helm"), "lint", "--strict", "--kube-version", "1.30.0", "helm/sluice").CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestMonitoringNamesPortsThatPodsHave: a PodMonitor with a wrong port scrapes nothing and says nothing.
func TestMonitoringNamesPortsThatPodsHave(t *testing.T) {
	for by, all := range map[string]objects{
		"helm":      helm(t, "--set", "podMonitor.enabled=true,controlPlane.mode=api"),
		"kustomize": kustomize(t, overlayWith(t, "overlays/api", "components/monitoring")),
	} {
		templates := map[string]corev1.PodTemplateSpec{
			"sluice-installer":    all.daemonSet(t, "sluice-system/sluice-installer").Spec.Template,
			"ztunnel":             all.daemonSet(t, "sluice-system/ztunnel").Spec.Template,
			"sluice-controlplane": all["Deployment sluice-system/sluice-controlplane"].(*appsv1.Deployment).Spec.Template,
		}
		for name, pod := range templates {
			monitor, ok := all["PodMonitor sluice-system/"+name].(*PodMonitor)
			if !ok {
				t.Fatalf("%s: no PodMonitor %s", by, name)
			}
			checkMonitor(t, monitor, pod)
		}
	}
}

func checkMonitor(t *testing.T, monitor *PodMonitor, pod corev1.PodTemplateSpec) {
	t.Helper()
	for key, value := range monitor.Spec.Selector.MatchLabels {
		if pod.Labels[key] != value {
			t.Errorf("%s selects %s=%s, pods have %q", monitor.Name, key, value, pod.Labels[key])
		}
	}
	port := monitor.Spec.PodMetricsEndpoints[0].Port
	if !slices.ContainsFunc(pod.Spec.Containers[0].Ports, func(p corev1.ContainerPort) bool { return p.Name == port }) {
		t.Errorf("%s: no port %s in its pods", monitor.Name, port)
	}
}

// overlayWith makes a kustomization of its own, as users do, from two of ours.
func overlayWith(t *testing.T, overlay, component string) string {
	t.Helper()
	here, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	to, err := filepath.Rel(dir, here)
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("resources: [%s/%s]\ncomponents: [%s/%s]\n", to, overlay, to, component)
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}
