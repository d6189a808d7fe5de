// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"path/filepath"
	"sync"
	"testing"

	"github.com/sluice-mesh/sluice/internal/lab/cluster"
)

const (
	enrolled = "istio.io/dataplane-mode=ambient"
	system   = "sluice-system"
)

var installed sync.Once

// install has the mesh on the cluster, by what users type, once for all tests.
func install(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	installed.Do(func() { c.Kubectl(t, "apply", "-k", manifests(t)) })
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

func TestMeshIsReadyAfterOneCommand(t *testing.T) {
	c := use(t)
	t.Log(c.Kubectl(t, "get", "nodes,pods", "-A", "-o", "wide"))
}
