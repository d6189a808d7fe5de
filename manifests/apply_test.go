// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-mesh/sluice/internal/lab/kube"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// podMonitors is as much of the Prometheus operator's definition as our objects use.
const podMonitors = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: podmonitors.monitoring.coreos.com}
spec:
  group: monitoring.coreos.com
  scope: Namespaced
  names: {kind: PodMonitor, plural: podmonitors, singular: podmonitor}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        required: [spec]
        properties:
          spec:
            type: object
            required: [selector, podMetricsEndpoints]
            properties:
              selector:
                type: object
                properties: {matchLabels: {type: object, additionalProperties: {type: string}}}
              podMetricsEndpoints:
                type: array
                items: {type: object, properties: {port: {type: string}, path: {type: string}}}
`

// cluster is an API server with the namespaces that manifests are applied to.
type cluster struct {
	*testing.T
	*kube.APIServer
	kubectl string
}

func newCluster(t *testing.T) *cluster {
	c := &cluster{t, kube.NewAPIServer(t), built(t, "k8s/kubectl")}
	for _, ns := range []string{"sluice-system", "istio-system", "mesh"} {
		c.namespace(ns, nil)
	}
	if out, err := c.apply([]byte(podMonitors)); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	testutil.Eventually(t, time.Minute, func() error {
		_, err := c.run(nil, "get", "podmonitors", "-A")
		return err
	})
	return c
}

func (c *cluster) namespace(name string, labels map[string]string) {
	c.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	if _, err := c.Client().CoreV1().Namespaces().Create(c.Context(), ns, metav1.CreateOptions{}); err != nil {
		c.Fatal(err)
	}
}

func (c *cluster) run(stdin []byte, args ...string) (string, error) {
	cmd := exec.Command(c.kubectl, append([]string{"--kubeconfig=" + c.Kubeconfig()}, args...)...)
	cmd.Stdin = bytes.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (c *cluster) apply(text []byte, flags ...string) (string, error) {
	return c.run(text, append([]string{"apply", "--server-side", "--validate=strict", "-f", "-"}, flags...)...)
}

// TestTheAPIServerTakesEveryRendering applies what kustomize and helm make by a dry run: schema, defaults and validation are
// those of the server.
func TestTheAPIServerTakesEveryRendering(t *testing.T) {
	c := newCluster(t)
	helm, kustomize := built(t, "k8s/helm"), built(t, "k8s/kustomize")
	texts := map[string][]byte{"chart elsewhere": output(t, helm, chartArgs("--namespace", "mesh", "--set", "podMonitor.enabled=true")...)}
	for _, folder := range []string{".", "overlays/api", "overlays/embedded", "overlays/istiod"} {
		texts[folder] = output(t, kustomize, "build", folder)
	}
	for _, mode := range []string{"api", "embedded", "istiod"} {
		texts["chart "+mode] = output(t, helm, chartArgs("--set", "podMonitor.enabled=true,agent.dnsCapture=true,controlPlane.mode="+mode)...)
	}
	texts["taint"] = output(t, kustomize, "build", overlayWith(t, "overlays/api", "components/taint"))
	texts["monitoring"] = output(t, kustomize, "build", overlayWith(t, "overlays/api", "components/monitoring"))
	c.namespace("hello", nil)
	hello, err := os.ReadFile("examples/hello.yaml")
	if err != nil {
		t.Fatal(err)
	}
	texts["the example"] = hello
	for name, text := range texts {
		if out, err := c.apply(text, "--dry-run=server"); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	for name, text := range map[string][]byte{
		"misspelt field":     bytes.Replace(texts["."], []byte("priorityClassName:"), []byte("priorityClasName:"), 1),
		"value out of range": bytes.Replace(texts["."], []byte("containerPort: 15014"), []byte("containerPort: 150140"), 1),
		"misspelt monitor":   bytes.Replace(texts["monitoring"], []byte("podMetricsEndpoints:"), []byte("podMetricEndpoints:"), 1),
	} {
		if out, err := c.apply(text, "--dry-run=server"); err == nil {
			t.Errorf("%s is taken: %s", name, out)
		}
	}
}

// TestExceptionsFromRestrictedAreThese asks the API server's own Pod Security admission. docs/SECURITY.md says why each is.
func TestExceptionsFromRestrictedAreThese(t *testing.T) {
	c := newCluster(t)
	c.namespace("restricted", map[string]string{"pod-security.kubernetes.io/enforce": "restricted"})
	all := kustomize(t, ".")
	for name, tc := range map[string]struct {
		pod        corev1.PodTemplateSpec
		exceptions []string
	}{
		"agent": {all.daemonSet(t, "sluice-system/sluice-installer").Spec.Template, []string{
			`forbidden AppArmor profile (container "agent" must not set AppArmor profile type to "Unconfined")`,
			`host namespaces (hostNetwork=true, hostPID=true)`,
			`hostPort (container "agent" uses hostPort 15014)`,
			`unrestricted capabilities (container "agent" must not include "CHOWN", "DAC_OVERRIDE", "NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE" in securityContext.capabilities.add)`,
			`restricted volume types (volumes "host", "run", "state", "bpffs", "cgroup", "netns" use restricted volume type "hostPath")`,
			`runAsNonRoot != true (pod or container "agent" must set securityContext.runAsNonRoot=true)`,
			`runAsUser=0 (container "agent" must not set runAsUser=0)`,
		}},
		"ztunnel": {all.daemonSet(t, "sluice-system/ztunnel").Spec.Template, []string{
			`unrestricted capabilities (container "istio-proxy" must not include "NET_RAW", "SYS_ADMIN" in securityContext.capabilities.add)`,
			`restricted volume types (volumes "run", "bpffs" use restricted volume type "hostPath")`,
			`runAsNonRoot != true (pod or container "istio-proxy" must set securityContext.runAsNonRoot=true)`,
			`runAsUser=0 (container "istio-proxy" must not set runAsUser=0)`,
		}},
		"control plane": {all["Deployment sluice-system/sluice-controlplane"].(*appsv1.Deployment).Spec.Template, nil},
	} {
		pod := &corev1.Pod{ObjectMeta: *tc.pod.ObjectMeta.DeepCopy(), Spec: tc.pod.Spec}
		pod.Name, pod.Spec.PriorityClassName = "probe", ""
		_, err := c.Client().CoreV1().Pods("restricted").Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		got := ""
		if err != nil {
			_, got, _ = strings.Cut(err.Error(), `"restricted:latest": `)
		}
		if want := strings.Join(tc.exceptions, ", "); got != want || (err != nil) != (want != "") {
			t.Errorf("%s: got %v, want %s", name, err, want)
		}
	}
}
