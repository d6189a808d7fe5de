// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-mesh/sluice/internal/lab/cluster"
	"github.com/sluice-mesh/sluice/internal/leak"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// loaded has web and its clients in the mesh, where none has asked another yet.
func loaded(t *testing.T, c *cluster.Cluster) (ns string, pairs []pair) {
	t.Helper()
	ns = c.Namespace(t, enrolled)
	pairs = across(t, c, ns)
	testutil.Eventually(t, effect, func() error { return annotated(t, c, ns, "enabled") })
	return ns, pairs
}

// inMesh has the pairs talk before, during and after f, and fails the test if a request of those during it fails, or if
// anything of theirs is on the wire but mTLS.
func inMesh(t *testing.T, c *cluster.Cluster, pairs []pair, f func()) {
	t.Helper()
	seen := watch(t, c, pairs, func() {
		ask(t, c, pairs)
		underLoad(t, c, pairs, f)
		ask(t, c, pairs)
	})
	if seen.Count > 0 || seen.HBONE == 0 {
		t.Errorf("%d segments of HBONE, %d leaks: %v", seen.HBONE, seen.Count, seen.Leaks)
	}
}

// watchAll is watch for pods that there are not yet: all addresses but those of the system's pods.
func watchAll(t *testing.T, c *cluster.Cluster, f func()) leak.Report {
	t.Helper()
	members := addressesOf(c.Nodes...)
	for _, ns := range []string{system, "kube-system"} {
		for _, pods := range c.Pods(t, ns, "") {
			for _, p := range pods {
				members = slices.DeleteFunc(members, func(a netip.Addr) bool {
					return slices.ContainsFunc(p.Status.PodIPs, func(ip corev1.PodIP) bool { return ip.IP == a.String() })
				})
			}
		}
	}
	return watchMembers(t, c, members, f)
}

// TestAppIsUpdatedWithoutAFailedRequest: with what Kubernetes asks of any app for that, a pause between the end of its
// endpoint and its own.
func TestAppIsUpdatedWithoutAFailedRequest(t *testing.T) {
	c := use(t)
	ns, pairs := loaded(t, c)
	c.Kubectl(t, "patch", "deployment", "web", "--namespace="+ns, "--patch", `{"spec": {
		"strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
		"template": {"spec": {"terminationGracePeriodSeconds": 15, "containers": [{"name": "web", "lifecycle": {"preStop": {"sleep": {"seconds": 4}}}}]}}}}`)
	c.Rollout(t, ns, "deployment/web")
	seen := watchAll(t, c, func() {
		underLoad(t, c, pairs, func() {
			for range 2 {
				c.Kubectl(t, "rollout", "restart", "--namespace="+ns, "deployment/web")
				c.Rollout(t, ns, "deployment/web")
			}
		})
	})
	if seen.Count > 0 || seen.HBONE == 0 {
		t.Errorf("%d segments of HBONE, %d leaks: %v", seen.HBONE, seen.Count, seen.Leaks)
	}
}

// TestZtunnelIsUpdatedWithoutAFailedRequest: the next one takes over before the one before it ends.
func TestZtunnelIsUpdatedWithoutAFailedRequest(t *testing.T) {
	c := use(t)
	_, pairs := loaded(t, c)
	before := podNames(t, c, "app=ztunnel")
	inMesh(t, c, pairs, func() {
		c.Kubectl(t, "rollout", "restart", "--namespace="+system, "daemonset/ztunnel")
		c.Rollout(t, system, "daemonset/ztunnel")
	})
	for _, name := range podNames(t, c, "app=ztunnel") {
		if slices.Contains(before, name) {
			t.Errorf("%s is still there", name)
		}
	}
}

// TestAgentIsUpgradedAndRolledBack: traffic does not notice, and pods that start meanwhile are in the mesh.
func TestAgentIsUpgradedAndRolledBack(t *testing.T) {
	c := use(t)
	ns, pairs := loaded(t, c)
	image := strings.TrimSpace(c.Kubectl(t, "get", "daemonset", "sluice-installer", "--namespace="+system,
		"--output=jsonpath={.spec.template.spec.containers[0].image}"))
	next := image + "-next"
	for _, n := range c.Nodes {
		if _, err := n.Run("ctr", "--namespace=k8s.io", "images", "tag", image, next); err != nil {
			t.Fatal(err)
		}
	}
	inMesh(t, c, pairs, func() {
		c.Kubectl(t, "set", "image", "--namespace="+system, "daemonset/sluice-installer", "agent="+next)
		t.Cleanup(func() { // does nothing if the test did it
			c.Kubectl(t, "set", "image", "--namespace="+system, "daemonset/sluice-installer", "agent="+image)
			c.Rollout(t, system, "daemonset/sluice-installer")
		})
		late(t, c, ns, "during-upgrade")
		c.Rollout(t, system, "daemonset/sluice-installer")
		late(t, c, ns, "after-upgrade")
		c.Kubectl(t, "rollout", "undo", "--namespace="+system, "daemonset/sluice-installer")
		late(t, c, ns, "during-rollback")
		c.Rollout(t, system, "daemonset/sluice-installer")
	})
}

// late starts a pod on each node and waits until it is in the mesh and is answered there.
func late(t *testing.T, c *cluster.Cluster, ns, name string) {
	t.Helper()
	for _, n := range c.Nodes {
		pod := name + "-" + n.Name
		c.Apply(t, ns, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 0
  containers: [{name: client, image: sluice.test/app:1, imagePullPolicy: Never}]
`, pod, n.Name))
		c.Kubectl(t, "wait", "--namespace="+ns, "--for=condition=Ready", "--timeout=120s", "pod/"+pod)
		testutil.Eventually(t, effect, func() error {
			got, err := c.TryKubectl("get", "pod", pod, "--namespace="+ns, `--output=jsonpath={.metadata.annotations.ambient\.istio\.io/redirection}`)
			if err == nil && got != "enabled" {
				err = fmt.Errorf("%s: %s is %q", pod, annotation, got)
			}
			return err
		})
		// After an outage of the API the control plane may not have heard of the pod yet, and has no certificate for it.
		testutil.Eventually(t, effect, func() error {
			_, err := c.Exec(ns, pod, "/app", "get", "http://web")
			return err
		})
	}
}

// podNames lists those of the system that a selector picks.
func podNames(t *testing.T, c *cluster.Cluster, selector string) (names []string) {
	t.Helper()
	for _, pods := range slices.Collect(maps.Values(c.Pods(t, system, selector))) {
		for _, p := range pods {
			names = append(names, p.Name)
		}
	}
	return names
}
