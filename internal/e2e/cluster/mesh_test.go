// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"encoding/json"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-mesh/sluice/internal/lab/cluster"
)

const (
	enrolled = "istio.io/dataplane-mode=ambient"
	system   = "sluice-system"
)

// install has the mesh on the cluster, by what users type. Where it is installed this changes nothing.
func install(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	c.Kubectl(t, "apply", "-k", manifests(t))
	for _, what := range []string{"deployment/sluice-controlplane", "daemonset/sluice-installer", "daemonset/ztunnel"} {
		c.Rollout(t, system, what)
	}
}

func manifests(t *testing.T, parts ...string) string {
	t.Helper()
	dir, err := filepath.Abs(filepath.Join(append([]string{"../../../manifests"}, parts...)...))
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestMeshIsReadyAfterOneCommand wants an installation without a hitch: nothing has crashed on the way, and each agent
// says of its node that all is well.
func TestMeshIsReadyAfterOneCommand(t *testing.T) {
	c := use(t)
	for node, pods := range c.Pods(t, system, "") {
		for _, p := range pods {
			for _, s := range p.Status.ContainerStatuses {
				if s.RestartCount > 0 {
					t.Errorf("%s on %s was restarted: %+v", p.Name, node, s.LastTerminationState.Terminated)
				}
			}
		}
	}
	for node, pods := range c.Pods(t, system, "app=sluice-installer") {
		out, err := c.Exec(system, pods[0].Name, "/usr/local/bin/sluice-installer", "status")
		if err != nil {
			t.Errorf("status of %s: %v", node, err)
		}
		t.Logf("%s:\n%s", node, out)
	}
}

// TestCommandsOfTheAgentsContainer: what docs/TROUBLESHOOTING.md says to run answers where ztunnel is in a pod of its own.
func TestCommandsOfTheAgentsContainer(t *testing.T) {
	c := use(t)
	ns, pairs := loaded(t, c)
	ask(t, c, pairs)
	agents := c.Pods(t, system, "app=sluice-installer")
	for _, p := range pairs {
		run := func(args ...string) (string, error) {
			return c.Exec(system, agents[p.client.Spec.NodeName][0].Name, append([]string{"/usr/local/bin/sluice-installer"}, args...)...)
		}
		client := ns + "/" + p.client.Name
		out, err := run("verify", "-o", "json", client)
		wantVerified(t, out, err)
		for _, ip := range p.server.Status.PodIPs {
			to := netip.AddrPortFrom(netip.MustParseAddr(ip.IP), 8080).String()
			if out, err := run("why", client, to); err != nil || !strings.Contains(out, "encrypted  yes") || !strings.Contains(out, "/ns/"+ns+"/sa/default") {
				t.Errorf("why of a connection in mutual TLS: %v\n%s", err, out)
			}
		}
		if out, err := run("why", client, "web"); err != nil || !strings.Contains(out, "encrypted  yes") {
			t.Errorf("why of a service by its name: %v\n%s", err, out)
		}
	}
}

// wantVerified wants all checks of verify to pass, but for those that a node of this cluster cannot: it has a part of its
// machine's cgroups, and says so.
func wantVerified(t *testing.T, out string, err error) {
	t.Helper()
	var checks []struct{ What, Result, Detail string }
	out = strings.Replace(out, "sluice-installer verify: not all checks passed\n", "", 1) // what it says beside
	if jsonErr := json.NewDecoder(strings.NewReader(out)).Decode(&checks); jsonErr != nil {
		t.Fatalf("%v, %v\n%s", jsonErr, err, out)
	}
	passed := map[string]bool{}
	for _, c := range checks {
		passed[c.What] = c.Result == "ok"
		if c.Result == "FAILED" && !strings.Contains(c.Detail, "shows only the sub-tree") {
			t.Errorf("%s: %s", c.What, c.Detail)
		}
	}
	for _, what := range []string{"mesh state", "capture IPv4", "capture IPv6", "live IPv4", "live IPv6", "inbound IPv4", "inbound IPv6"} {
		if !passed[what] {
			t.Errorf("%s is not ok in\n%s", what, out)
		}
	}
}
