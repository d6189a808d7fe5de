// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/internal/lab/cluster"
	"github.com/sluice-mesh/sluice/internal/leak"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// outage is how long the API server is away.
const outage = time.Minute

// asker is a pod that asks the Service web all by itself, on a node, for some time: nobody can call it by kubectl while
// the API server is away.
const asker = `
apiVersion: v1
kind: Pod
metadata: {name: asker-%s}
spec:
  nodeName: %s
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers: [{name: asker, image: sluice.test/app:1, imagePullPolicy: Never, args: [load, -for, %s, "http://web"]}]
`

// startAskers puts one on each node. The function it returns waits for their end, and fails the test if a request of theirs
// failed.
func startAskers(t *testing.T, c *cluster.Cluster, ns string, during time.Duration) (finish func()) {
	t.Helper()
	var all []func()
	for _, n := range c.Nodes {
		all = append(all, startAsker(t, c, ns, n, during))
	}
	return func() {
		t.Helper()
		for _, finish := range all {
			finish()
		}
	}
}

// startAsker is startAskers for one node.
func startAsker(t *testing.T, c *cluster.Cluster, ns string, n *cluster.Node, during time.Duration) (finish func()) {
	t.Helper()
	c.Apply(t, ns, fmt.Sprintf(asker, n.Name, n.Name, during))
	c.Kubectl(t, "wait", "--namespace="+ns, "--for=condition=Ready", "--timeout=60s", "pod/asker-"+n.Name)
	return func() { t.Helper(); finished(t, c, ns, n, during) }
}

// finished waits for the end of a node's asker, and fails the test if a request of its failed.
func finished(t *testing.T, c *cluster.Cluster, ns string, n *cluster.Node, during time.Duration) {
	t.Helper()
	pod := "pod/asker-" + n.Name
	_, err := c.TryKubectl("wait", "--namespace="+ns, "--for=jsonpath={.status.phase}=Succeeded", fmt.Sprintf("--timeout=%s", during+time.Minute), pod)
	log := c.Kubectl(t, "logs", "--namespace="+ns, pod)
	if o, ok := parseOutcome(log); err != nil || !ok || o.Failures > 0 || o.Requests == 0 {
		t.Errorf("%s: %v\n%s", pod, err, log)
	}
}

// TestTrafficOutlivesTheAPIServer: for a minute, in which agents, ztunnels and kubelets are killed, too. What they know is on
// the node.
func TestTrafficOutlivesTheAPIServer(t *testing.T) {
	c := use(t)
	ns, pairs := loaded(t, c)
	ask(t, c, pairs)
	askers := startAskers(t, c, ns, outage+10*time.Second)
	up := false
	t.Cleanup(func() {
		if !up {
			c.StartAPIServer()
		}
	})
	c.StopAPIServer()
	over := time.After(outage)
	kill(t, c.Nodes[0], "sluice-installer agent")
	c.Nodes[1].KillProcess("kubelet")
	c.Nodes[1].StartProcess("kubelet")
	<-over
	c.StartAPIServer()
	up = true
	for _, n := range c.Nodes {
		n.WaitReady()
	}
	askers()
	c.Rollout(t, system, "daemonset/sluice-installer")
	late(t, c, ns, "after-outage")
}

// kill ends all processes on a node whose command line has words, and fails the test if there is none.
func kill(t *testing.T, n *cluster.Node, words string) {
	t.Helper()
	out, err := n.Run("sh", "-c", `for p in /proc/[0-9]*; do
		tr '\0' ' ' < $p/cmdline 2>/dev/null | grep -q "$1" && [ ${p#/proc/} != $$ ] && kill -9 ${p#/proc/} && echo ${p#/proc/}; done; true`, "sh", "^[^ ]*"+words)
	if err != nil || strings.TrimSpace(out) == "" {
		t.Fatalf("kill %q on %s: %v, killed %q", words, n.Name, err, out)
	}
}

// TestKubeletAndRuntimeRestart: neither is in the path of traffic, and what starts afterwards is in the mesh.
func TestKubeletAndRuntimeRestart(t *testing.T) {
	c := use(t)
	ns, pairs := loaded(t, c)
	ask(t, c, pairs)
	askers := startAskers(t, c, ns, 30*time.Second)
	for _, n := range c.Nodes {
		n.KillProcess("kubelet")
		n.KillProcess("containerd")
		n.StartProcess("containerd")
		testutil.Eventually(t, effect, func() error {
			_, err := n.Run("ctr", "version")
			return err
		})
		n.StartProcess("kubelet")
	}
	for _, n := range c.Nodes {
		n.WaitReady()
	}
	askers()
	late(t, c, ns, "after-restart")
}

// TestRebootOfANode: its pods come up before its agent does, if they can. Nothing that a pod of the other node, in the mesh,
// exchanges with it is ever in clear.
func TestRebootOfANode(t *testing.T) {
	c := use(t)
	ns, pairs := loaded(t, c)
	near, far := c.Nodes[0], c.Nodes[1]
	members := addressesOf(far)
	for _, p := range pairs {
		if p.client.Spec.NodeName == near.Name {
			members = append(members, p.addrs()...)
		}
	}
	w, err := leak.Start(members, leak.Point{NS: near.NS.Name, Interface: "eth0"})
	if err != nil {
		t.Fatal(err)
	}
	ask(t, c, pairs)
	c.Apply(t, ns, fmt.Sprintf(asker, near.Name, near.Name, "60s")) // some of its requests meet the end of a server
	c.Kubectl(t, "wait", "--namespace="+ns, "--for=condition=Ready", "--timeout=60s", "pod/asker-"+near.Name)
	far.Reboot()
	far.WaitReady()
	testutil.Eventually(t, 2*time.Minute, func() error {
		pairs = pairsOf(t, c, ns) // with other addresses
		for _, p := range pairs {
			if err := p.reach(c); err != nil {
				return err
			}
		}
		return nil
	})
	for _, what := range []string{"daemonset/sluice-installer", "daemonset/ztunnel", "deployment/sluice-controlplane"} {
		c.Rollout(t, system, what)
	}
	ask(t, c, pairs)
	report, err := w.Stop()
	if err != nil {
		t.Fatal(err)
	}
	if report.Count > 0 || report.HBONE == 0 {
		t.Errorf("%d segments of HBONE, %d leaks: %v", report.HBONE, report.Count, report.Leaks)
	}
	late(t, c, ns, "after-reboot")
}

// addressesOf are those that pods of the nodes may get.
func addressesOf(nodes ...*cluster.Node) (all []netip.Addr) {
	for _, n := range nodes {
		for _, p := range []netip.Prefix{n.Pods4, n.Pods6} {
			a := p.Addr()
			for range 254 {
				a = a.Next()
				all = append(all, a)
			}
		}
	}
	return all
}
