// SPDX-License-Identifier: Apache-2.0

// Package cluster has only tests: what users do on a cluster, on a real one of two nodes (internal/lab/cluster), with the
// images and manifests of this tree. "make e2e" builds what it needs and runs it. A single test, once that is built:
//
//	sudo SLUICE_E2E=1 go test -v -run TestServiceAcrossNodes ./internal/e2e/cluster
//
// All tests share one cluster, and each has Kubernetes namespaces of its own:
//
//	func TestSomething(t *testing.T) {
//		c := use(t)                                       // mesh installed and ready; bare(t): as it is
//		ns := c.Namespace(t, enrolled)                    // label istio.io/dataplane-mode=ambient; deleted at the end
//		c.Apply(t, ns, deployment)                        // YAML; image: sluice.test/app:1 (internal/lab/cluster/app)
//		c.Rollout(t, ns, "deployment/web")
//		out, err := c.Exec(ns, pod, "/app", "get", "http://web")
//		n := c.Node(pods["web"].Spec.NodeName)            // n.KillProcess("kubelet"), n.Reboot(), n.Run("ip", "rule")
//	}
//
// TestIstiod... have a cluster of their own, with a real istiod as control plane. "make e2e-istiod" builds it and runs them;
// elsewhere they are skipped, in CI too, unless it is built.
//
// What a test stops or breaks it puts back before it ends, by t.Cleanup, so that it does so when it fails, too.
package cluster
