// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"fmt"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
)

// renderings are all ways to install, with the namespace each uses.
func renderings(t *testing.T) map[string]struct {
	objects
	namespace string
} {
	type rendering = struct {
		objects
		namespace string
	}
	istiod := []string{"--set", "controlPlane.mode=istiod"}
	folders := []string{"--set", "cni.confDir=/etc/cni/net.d,cni.binDir=/opt/cni/bin"}
	return map[string]rendering{
		"manifests":         {kustomize(t, "."), "sluice-system"},
		"overlays/embedded": {kustomize(t, "overlays/embedded"), "sluice-system"},
		"overlays/istiod":   {kustomize(t, "overlays/istiod"), "istio-system"},
		"overlays/api":      {kustomize(t, "overlays/api"), "sluice-system"},
		"chart with api":    {helm(t), "sluice-system"},
		"chart, embedded":   {helm(t, "--set", "controlPlane.mode=embedded"), "sluice-system"},
		"chart with api elsewhere": {helm(t, "--namespace", "mesh", "--set", "controlPlane.mode=api,controlPlane.api.replicas=3,"+
			"controlPlane.api.extraArgs={--cluster-id=east}"), "mesh"},
		"chart with a named bin folder":  {helm(t, "--set", "cni.binDir=/opt/cni/bin"), "sluice-system"},
		"chart with a named conf folder": {helm(t, "--set", "cni.confDir=/etc/cni/net.d"), "sluice-system"},
		"chart on Kubernetes 1.29":       {helm(t, "--kube-version", "1.29.0"), "sluice-system"},
		"chart for istiod":               {helm(t, istiod...), "sluice-system"},
		"chart with named CNI folders": {helm(t, append(folders, "--set", "podMonitor.enabled=true,agent.dnsCapture=true,"+
			"agent.logLevel=debug,cni.mode=owned,agent.excludeNamespaces={a,b},ztunnel.env.LOG_LEVEL=debug")...), "sluice-system"},
	}
}

func TestEveryRenderingHoldsTogether(t *testing.T) {
	for name, r := range renderings(t) {
		t.Run(name, func(t *testing.T) {
			agent, ztunnel := r.daemonSet(t, r.namespace+"/sluice-installer"), r.daemonSet(t, r.namespace+"/ztunnel")
			for _, ds := range []*appsv1.DaemonSet{agent, ztunnel} {
				checkDaemonSet(t, r.objects, ds)
			}
			checkAgent(t, &agent.Spec.Template, strings.Contains(name, "1.29"))
			checkBindings(t, r.objects)
			checkStarts(t, built(t, "bin/sluice-installer"), agent.Spec.Template.Spec)
			checkStarts(t, built(t, "bin/ztunnel"), ztunnel.Spec.Template.Spec)
			if plane, ok := r.objects[fmt.Sprintf("Deployment %s/sluice-controlplane", r.namespace)].(*appsv1.Deployment); ok {
				checkControlplane(t, r.objects, plane)
				checkStarts(t, built(t, "bin/sluice-installer"), plane.Spec.Template.Spec)
				checkReachesControlplane(t, ztunnel, plane.Namespace)
			} else if strings.Contains(name, "api") {
				t.Error("no Deployment of the control plane")
			}
		})
	}
}

// checkAgent wants what the agent is told of the node to be in its container, and AppArmor to let it work there: by an annotation
// where Kubernetes has no field for it.
func checkAgent(t *testing.T, pod *corev1.PodTemplateSpec, old bool) {
	t.Helper()
	c := &pod.Spec.Containers[0]
	for _, arg := range c.Args {
		flag, path, _ := strings.Cut(arg, "=")
		if flag != "--cni-bin-dir" && flag != "--cni-conf-dir" && flag != "--host-root" || path == "auto" {
			continue
		}
		if !slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == path && !m.ReadOnly }) {
			t.Errorf("%s is not mounted in the agent's container", arg)
		}
	}
	field := c.SecurityContext.AppArmorProfile
	if byField := field != nil && field.Type == corev1.AppArmorProfileTypeUnconfined; byField == old {
		t.Errorf("AppArmor profile by field: %v", field)
	}
	annotation := pod.Annotations["container.apparmor.security.beta.kubernetes.io/"+c.Name]
	if byAnnotation := annotation == "unconfined"; byAnnotation != old {
		t.Errorf("AppArmor profile by annotation: %q", annotation)
	}
}

// checkDaemonSet holds what is promised of both: docs/SECURITY.md lists the exceptions from the profile "restricted".
func checkDaemonSet(t *testing.T, all objects, ds *appsv1.DaemonSet) {
	t.Helper()
	pod := ds.Spec.Template
	if all[fmt.Sprintf("ServiceAccount %s/%s", ds.Namespace, pod.Spec.ServiceAccountName)] == nil {
		t.Errorf("%s: no ServiceAccount %s", ds.Name, pod.Spec.ServiceAccountName)
	}
	for key, value := range ds.Spec.Selector.MatchLabels {
		if pod.Labels[key] != value {
			t.Errorf("%s selects %s=%s, its pods have %q", ds.Name, key, value, pod.Labels[key])
		}
	}
	if pod.Labels["istio.io/dataplane-mode"] != "none" || pod.Spec.PriorityClassName != "system-node-critical" {
		t.Errorf("%s: labels %v, priority %q", ds.Name, pod.Labels, pod.Spec.PriorityClassName)
	}
	if want := []corev1.Toleration{{Operator: corev1.TolerationOpExists}}; !cmp.Equal(pod.Spec.Tolerations, want) {
		t.Errorf("%s does not tolerate everything: %v", ds.Name, pod.Spec.Tolerations)
	}
	for _, c := range pod.Spec.Containers {
		checkContainer(t, ds.Name, pod.Spec, c)
	}
}

func checkContainer(t *testing.T, owner string, pod corev1.PodSpec, c corev1.Container) {
	t.Helper()
	s := c.SecurityContext
	if s == nil || s.Privileged == nil || *s.Privileged || *s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem ||
		s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) {
		t.Errorf("%s: security context %+v", owner, s)
	}
	if c.ReadinessProbe == nil || c.Resources.Requests.Cpu().IsZero() || c.Resources.Requests.Memory().IsZero() {
		t.Errorf("%s: no readiness probe or requests", owner)
	}
	for _, m := range c.VolumeMounts {
		if !slices.ContainsFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name }) {
			t.Errorf("%s: mount of volume %q that is not there", owner, m.Name)
		}
		if m.MountPropagation != nil && *m.MountPropagation == corev1.MountPropagationBidirectional {
			t.Errorf("%s: the API refuses Bidirectional propagation of %q without privileged", owner, m.Name)
		}
	}
	for _, v := range pod.Volumes {
		if !slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return v.Name == m.Name }) {
			t.Errorf("%s: volume %q is mounted nowhere", owner, v.Name)
		}
	}
}

// checkControlplane wants of the control plane what the profile "restricted" does, and that its Service finds it.
func checkControlplane(t *testing.T, all objects, plane *appsv1.Deployment) {
	t.Helper()
	pod := plane.Spec.Template
	checkContainer(t, plane.Name, pod.Spec, pod.Spec.Containers[0])
	if s := pod.Spec.Containers[0].SecurityContext; s.RunAsNonRoot == nil || !*s.RunAsNonRoot || len(s.Capabilities.Add) > 0 || pod.Spec.HostNetwork || len(pod.Spec.Volumes) > 0 {
		t.Errorf("control plane may more than it needs: %+v", pod.Spec)
	}
	if all[fmt.Sprintf("ServiceAccount %s/%s", plane.Namespace, pod.Spec.ServiceAccountName)] == nil || pod.Labels["istio.io/dataplane-mode"] != "none" {
		t.Errorf("control plane: account %s, labels %v", pod.Spec.ServiceAccountName, pod.Labels)
	}
	service, ok := all[fmt.Sprintf("Service %s/%s", plane.Namespace, plane.Name)].(*corev1.Service)
	if !ok {
		t.Fatal("no Service of the control plane")
	}
	for key, value := range service.Spec.Selector {
		if pod.Labels[key] != value {
			t.Errorf("Service selects %s=%s, pods have %q", key, value, pod.Labels[key])
		}
	}
	budget, ok := all[fmt.Sprintf("PodDisruptionBudget %s/%s", plane.Namespace, plane.Name)].(*policyv1.PodDisruptionBudget)
	if !ok || !reflect.DeepEqual(budget.Spec.Selector, plane.Spec.Selector) || len(pod.Spec.TopologySpreadConstraints) != 1 ||
		!reflect.DeepEqual(pod.Spec.TopologySpreadConstraints[0].LabelSelector, plane.Spec.Selector) {
		t.Errorf("control plane's replicas may go together: budget %+v, spread %+v", budget, pod.Spec.TopologySpreadConstraints)
	}
	if target := service.Spec.Ports[0].TargetPort.StrVal; !slices.ContainsFunc(pod.Spec.Containers[0].Ports, func(p corev1.ContainerPort) bool { return p.Name == target }) {
		t.Errorf("Service: no port %q in its pods", target)
	}
}

// checkReachesControlplane wants ztunnel to ask by a name that the control plane's certificate has by default.
func checkReachesControlplane(t *testing.T, ztunnel *appsv1.DaemonSet, namespace string) {
	t.Helper()
	want := corev1.EnvVar{Name: "XDS_ADDRESS", Value: "https://sluice-controlplane." + namespace + ".svc:15012"}
	if env := ztunnel.Spec.Template.Spec.Containers[0].Env; !slices.Contains(env, want) {
		t.Errorf("ztunnel: no %v in %v", want, env)
	}
}

// checkBindings follows each binding to its role and its accounts.
func checkBindings(t *testing.T, all objects) {
	t.Helper()
	var accounts []rbacv1.Subject
	for name, obj := range all {
		switch b := obj.(type) {
		case *rbacv1.ClusterRoleBinding:
			if all["ClusterRole /"+b.RoleRef.Name] == nil {
				t.Errorf("%s: no role %s", name, b.RoleRef.Name)
			}
			accounts = append(accounts, b.Subjects...)
		case *rbacv1.RoleBinding:
			if all[fmt.Sprintf("Role %s/%s", b.Namespace, b.RoleRef.Name)] == nil {
				t.Errorf("%s: no role %s", name, b.RoleRef.Name)
			}
			accounts = append(accounts, b.Subjects...)
		}
	}
	for _, s := range accounts {
		if all[fmt.Sprintf("ServiceAccount %s/%s", s.Namespace, s.Name)] == nil {
			t.Errorf("a binding names %s/%s, which is not there", s.Namespace, s.Name)
		}
	}
}

// checkStarts has the binary itself read the container's flags: what follows them is asked for only if they are good.
func checkStarts(t *testing.T, program string, pod corev1.PodSpec) {
	t.Helper()
	args := append(slices.Clone(pod.Containers[0].Args), "--help")
	if out, err := exec.Command(program, args...).CombinedOutput(); err != nil || !strings.HasPrefix(string(out), "Usage") && !strings.Contains(string(out), "\nUsage") {
		t.Errorf("%s %v: %v\n%s", program, args, err, out)
	}
}

func TestZtunnelsOverlapDuringUpgrades(t *testing.T) {
	up := kustomize(t, ".").daemonSet(t, "sluice-system/ztunnel").Spec.UpdateStrategy.RollingUpdate
	if up.MaxSurge.IntValue() != 1 || up.MaxUnavailable.IntValue() != 0 {
		t.Errorf("got surge %v, unavailable %v, want 1 and 0", up.MaxSurge, up.MaxUnavailable)
	}
}

// TestChartIsAsTheKustomization compares object by object, field by field.
func TestChartIsAsTheKustomization(t *testing.T) {
	for name, c := range map[string]struct {
		overlay string
		values  []string
	}{
		"default":  {".", nil},
		"api":      {"overlays/api", []string{"--set", "controlPlane.mode=api"}},
		"embedded": {"overlays/embedded", []string{"--set", "controlPlane.mode=embedded"}},
		"taint":    {overlayWith(t, "overlays/api", "components/taint"), []string{"--set", "agent.removeTaint=true"}},
		"istiod":   {"overlays/istiod", []string{"--namespace", "istio-system", "--set", "controlPlane.mode=istiod"}},
	} {
		t.Run(name, func(t *testing.T) {
			want, got := kustomize(t, c.overlay), helm(t, c.values...)
			delete(want, "Namespace /sluice-system") // a chart cannot make the namespace that it is installed into
			normalize(want)
			normalize(got)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("kustomize (-), helm (+):\n%s", diff)
			}
		})
	}
}

// normalize sorts what has no order of its own.
func normalize(all objects) {
	for _, obj := range all {
		ds, ok := obj.(*appsv1.DaemonSet)
		if !ok {
			continue
		}
		pod := &ds.Spec.Template.Spec
		byName := func(a, b corev1.EnvVar) int { return strings.Compare(a.Name, b.Name) }
		slices.SortFunc(pod.Containers[0].Env, byName)
		slices.SortFunc(pod.Volumes, func(a, b corev1.Volume) int { return strings.Compare(a.Name, b.Name) })
		slices.SortFunc(pod.Containers[0].VolumeMounts, func(a, b corev1.VolumeMount) int { return strings.Compare(a.MountPath, b.MountPath) })
	}
}
