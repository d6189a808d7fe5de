// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"os"
	"testing"

	"github.com/sluice-mesh/sluice/internal/lab/cluster"
)

// shared is the cluster of all tests that do not need one of their own.
var shared = outlive{}

func TestMain(m *testing.M) {
	if os.Getenv(toBeKilled) != "" {
		bringUp()
	}
	code := m.Run()
	if !shared.end() && code == 0 {
		code = 1
	}
	os.Exit(code)
}

// use returns the cluster, with the mesh installed by "kubectl apply -k manifests/" and ready. Whatever a test stops or
// changes of what all share it puts back before it ends.
func use(t *testing.T) *cluster.Cluster {
	t.Helper()
	c := bare(t)
	showMesh(t, c, system)
	install(t, c)
	return c
}

// showMesh prints what the mesh, in a namespace, logged last, if the test fails.
func showMesh(t *testing.T, c *cluster.Cluster, namespace string) {
	t.Helper()
	t.Cleanup(func() {
		if t.Failed() {
			out, err := c.TryKubectl("logs", "--namespace="+namespace, "--selector=app.kubernetes.io/part-of=sluice", "--prefix", "--tail=40")
			t.Logf("logs of the mesh: %v\n%s", err, out)
		}
	})
}

// bare returns the cluster, with or without the mesh.
func bare(t *testing.T) *cluster.Cluster {
	t.Helper()
	requireE2E(t)
	return shared.start(t)
}

// requireE2E skips tests of a cluster unless they are asked for, in CI too: there "make e2e" is a step of its own.
func requireE2E(t *testing.T) {
	t.Helper()
	if os.Getenv("SLUICE_E2E") == "" {
		t.Skip("SLUICE_E2E is not set: \"make e2e\" builds Kubernetes, sets it, and runs these")
	}
}
