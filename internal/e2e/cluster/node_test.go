// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/internal/lab/cluster"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// TestNodeOutlivesItsParts shows what other tests rest on: kubelet and containerd may be killed under running pods, and a
// node that lost its power comes back with its pods.
func TestNodeOutlivesItsParts(t *testing.T) {
	c := bare(t)
	ns := c.Namespace(t)
	pairs := across(t, c, ns)
	n := c.Node(pairs[0].server.Spec.NodeName)
	for _, name := range []string{"kubelet", "containerd", "kube-proxy"} {
		n.KillProcess(name)
		if err := answers(c, pairs[0]); err != nil {
			t.Errorf("with %s killed: %v", name, err)
		}
		n.StartProcess(name)
		n.WaitReady()
	}
	testutil.Eventually(t, effect, func() error { return pairs[0].reach(c) })

	if err := os.WriteFile(n.Path("/var/lib/kept"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Run("touch", "/run/lost"); err != nil {
		t.Fatal(err)
	}
	before := n.NS.Name
	n.PowerOff()
	if err := answers(c, pairs[0]); err == nil {
		t.Error("a pod of a node without power answers")
	}
	n.Start()
	n.WaitReady()
	if _, err := os.Stat(n.Path("/var/lib/kept")); err != nil {
		t.Errorf("the disk: %v", err)
	}
	if _, err := os.Stat(n.Path("/run/lost")); !errors.Is(err, os.ErrNotExist) || before == n.NS.Name {
		t.Errorf("/run and network namespace outlived the reboot: %v, %s", err, n.NS.Name)
	}
	testutil.Eventually(t, 90*time.Second, func() error {
		pairs := across(t, c, ns)
		return errors.Join(pairs[0].reach(c), pairs[1].reach(c))
	})
}

// answers reports whether the server answers a host outside of the cluster, which no kubelet has a part in.
func answers(c *cluster.Cluster, p pair) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	conn, err := c.Outside.Dial(ctx, "tcp", net.JoinHostPort(p.server.Status.PodIP, "8080"))
	if err != nil {
		return err
	}
	return conn.Close()
}
