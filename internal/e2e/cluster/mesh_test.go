// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"path/filepath"
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
