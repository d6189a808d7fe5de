// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/internal/lab/cluster"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// TestBrokenUpgradeOfTheAgentIsUndone: the next agent crashes as it starts. Traffic does not notice, pods that are not of the
// mesh start, those of the mesh wait and send nothing, the other node keeps its agent, and all is well once it is undone.
func TestBrokenUpgradeOfTheAgentIsUndone(t *testing.T) {
	c := use(t)
	ns, pairs := loaded(t, c)
	plain := c.Namespace(t)
	for _, n := range c.Nodes {
		testutil.Eventually(t, effect, func() error { return knows(n, plain) })
	}
	seen := watchAll(t, c, func() {
		ask(t, c, pairs)
		underLoad(t, c, pairs, func() {
			before := podNames(t, c, "app=sluice-installer")
			broken, well := breakAgent(t, c, before)
			c.Apply(t, ns, fmt.Sprintf(asker, broken.Name, broken.Name, "5s"))
			starts(t, c, plain, "not-of-the-mesh", broken)
			starts(t, c, "kube-system", "not-of-the-mesh", broken)
			startAsker(t, c, ns, well, 5*time.Second)()
			waits(t, c, ns, "asker-"+broken.Name)
			wantOneUnavailable(t, c, before)

			c.Kubectl(t, "rollout", "undo", "--namespace="+system, "daemonset/sluice-installer")
			c.Rollout(t, system, "daemonset/sluice-installer")
			finished(t, c, ns, broken, 5*time.Second)
			late(t, c, ns, "after-undo")
		})
	})
	if seen.Count > 0 || seen.HBONE == 0 {
		t.Errorf("%d segments of HBONE, %d leaks: %v", seen.HBONE, seen.Count, seen.Leaks)
	}
}

// knows reports whether the node's agent has noted a namespace, as the plugin reads it while there is no agent.
func knows(n *cluster.Node, ns string) error {
	const noted = "/var/lib/sluice/enrolment.json"
	text, err := os.ReadFile(n.Path(noted))
	if err == nil && !strings.Contains(string(text), `"`+ns+`"`) {
		err = fmt.Errorf("%s of %s has no %s:\n%s", noted, n.Name, ns, text)
	}
	return err
}

// breakAgent rolls out an agent that ends at once, and returns the node where one did so again and again, and the other one.
// before are the names of the agents' pods.
func breakAgent(t *testing.T, c *cluster.Cluster, before []string) (broken, well *cluster.Node) {
	t.Helper()
	t.Cleanup(func() { install(t, c) }) // changes nothing if the test has undone it
	c.Kubectl(t, "patch", "daemonset", "sluice-installer", "--namespace="+system, "--type=json",
		`--patch=[{"op": "add", "path": "/spec/template/spec/containers/0/args/-", "value": "--no-such-flag"}]`)
	testutil.Eventually(t, 2*effect, func() error {
		for node, pods := range c.Pods(t, system, "app=sluice-installer") {
			for _, p := range pods {
				s := p.Status.ContainerStatuses
				if !slices.Contains(before, p.Name) && len(s) == 1 && s[0].RestartCount > 0 {
					broken = c.Node(node)
					return nil
				}
			}
		}
		return fmt.Errorf("no agent has crashed: %s", c.Kubectl(t, "get", "pods", "--namespace="+system))
	})
	other := slices.IndexFunc(c.Nodes, func(n *cluster.Node) bool { return n != broken })
	return broken, c.Nodes[other]
}

// starts wants a pod that does nothing to run on a node.
func starts(t *testing.T, c *cluster.Cluster, ns, pod string, n *cluster.Node) {
	t.Helper()
	c.Apply(t, ns, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 0
  containers: [{name: app, image: sluice.test/app:1, imagePullPolicy: Never}]
`, pod, n.Name))
	t.Cleanup(func() { c.Kubectl(t, "delete", "pod", pod, "--namespace="+ns, "--ignore-not-found") })
	c.Kubectl(t, "wait", "--namespace="+ns, "--for=condition=Ready", "--timeout=60s", "pod/"+pod)
}

// waits wants events to say of a pod that it cannot start yet, and what to look at.
func waits(t *testing.T, c *cluster.Cluster, ns, pod string) {
	t.Helper()
	testutil.Eventually(t, effect, func() error {
		out, err := c.TryKubectl("get", "events", "--namespace="+ns, "--field-selector=involvedObject.name="+pod)
		if err == nil && !hasAll(out, []string{"FailedCreatePodSandBox", "agent"}) {
			err = fmt.Errorf("events of %s:\n%s", pod, out)
		}
		return err
	})
	if phase := c.Kubectl(t, "get", "pod", pod, "--namespace="+ns, "--output=jsonpath={.status.phase} {.status.podIPs}"); phase != "Pending " {
		t.Errorf("%s is %q without an agent, want it to wait", pod, phase)
	}
}

// wantOneUnavailable wants all agents but one to be those of before, and ready.
func wantOneUnavailable(t *testing.T, c *cluster.Cluster, before []string) {
	t.Helper()
	kept := 0
	for _, name := range podNames(t, c, "app=sluice-installer") {
		if slices.Contains(before, name) {
			kept++
		}
	}
	if want := len(before) - 1; kept != want {
		t.Errorf("%d of the agents are still those of before, want %d", kept, want)
	}
	got := c.Kubectl(t, "get", "daemonset", "sluice-installer", "--namespace="+system,
		"--output=jsonpath={.status.updatedNumberScheduled} updated, {.status.numberReady} ready, {.status.numberUnavailable} unavailable")
	if want := fmt.Sprintf("1 updated, %d ready, 1 unavailable", len(before)-1); got != want {
		t.Errorf("agents: %s, want %s", got, want)
	}
}
