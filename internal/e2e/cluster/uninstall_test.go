// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-mesh/sluice/internal/lab/cluster"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// nodeState prints what a node has that the mesh changes: its CNI files with modes and content, pins, what the mesh keeps, and
// links, rules, routes and sysctls of itself and of its pods.
const nodeState = `
find /etc/cni /opt/cni -type f -printf '%m %u %p ' -exec sha256sum {} \;
find /sys/fs/bpf /run/sluice /var/lib/sluice -mindepth 1 2>/dev/null
state() {
	ip -o link | sed 's/^[0-9]*: //; s/ qlen.*//'
	for f in -4 -6; do ip $f rule; ip $f route show table all | sort; done
	sysctl -a 2>/dev/null | grep -E 'route_localnet|rp_filter|accept_local|tcp_l3mdev|ip_forward'
}
state
for ns in /run/netns/*; do echo "in $ns"; nsenter --net=$ns bash -c "$(declare -f state); state"; done
true
`

// TestUninstallLeavesNothing installs the mesh under running pods, takes it away again, and compares: once as docs/INSTALL.md
// says, once with everything deleted in one go.
func TestUninstallLeavesNothing(t *testing.T) {
	requireE2E(t)
	c := cluster.Start(t, cluster.Config{Nodes: 1})
	ns := c.Namespace(t, enrolled)
	c.Apply(t, ns, strings.NewReplacer("replicas: 2", "replicas: 1").Replace(web))
	c.Rollout(t, ns, "deployment/web")
	c.Rollout(t, ns, "deployment/client")
	node := c.Nodes[0]
	client := c.Pods(t, ns, "app=client")[node.Name][0].Name
	pods := uids(t, c, ns)
	before := stateOf(t, node)
	for _, way := range [][]string{
		{"delete daemonset sluice-installer --namespace=" + system + " --cascade=foreground", "delete --ignore-not-found -k " + manifests(t)},
		{"delete -k " + manifests(t)},
	} {
		c.Kubectl(t, "apply", "-k", manifests(t))
		for _, what := range []string{"deployment/sluice-controlplane", "daemonset/sluice-installer", "daemonset/ztunnel"} {
			c.Rollout(t, system, what)
		}
		testutil.Eventually(t, effect, func() error { return annotated(t, c, ns, "enabled") })
		testutil.Eventually(t, effect, func() error {
			if _, err := c.Exec(ns, client, "/app", "get", "http://web"); err != nil {
				return err
			}
			return isLogged(t, c, system, node.Name, `direction="outbound"`, `src.identity="spiffe://cluster.local/ns/`+ns+`/sa/default"`, `verdict="mtls"`)
		})
		if cmp.Equal(before, stateOf(t, node)) {
			t.Fatal("the mesh changes nothing: this test sees too little")
		}
		for _, command := range way {
			c.Kubectl(t, strings.Fields(command)...)
		}
		if diff := cmp.Diff(before, stateOf(t, node)); diff != "" {
			t.Errorf("%q: before (-), after (+):\n%s", way, diff)
		}
		if out, err := c.Exec(ns, client, "/app", "get", "http://web"); err != nil {
			t.Errorf("%q: in clear: %v\n%s", way, err, out)
		}
		if diff := cmp.Diff(pods, uids(t, c, ns)); diff != "" {
			t.Errorf("%q: pods before (-), after (+):\n%s", way, diff)
		}
		if len(way) > 1 { // in one go the right to write it goes first
			if err := annotated(t, c, ns, ""); err != nil {
				t.Error(err)
			}
		}
	}
}

func stateOf(t *testing.T, n *cluster.Node) []string {
	t.Helper()
	out, err := n.Run("bash", "-c", nodeState)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(out, "\n")
}

// uids are those of a namespace's pods, and how often their containers were restarted.
func uids(t *testing.T, c *cluster.Cluster, ns string) []string {
	t.Helper()
	var all []string
	for pods := range maps.Values(c.Pods(t, ns, "")) {
		for _, p := range pods {
			all = append(all, fmt.Sprintf("%s %s %d", p.Name, p.UID, p.Status.ContainerStatuses[0].RestartCount))
		}
	}
	return all
}
