// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// TestKilledPartsLeavePodsRunning kills with SIGKILL what serves the pods, one after another and all at once.
func TestKilledPartsLeavePodsRunning(t *testing.T) {
	each(t, func(t *testing.T, r release) {
		n := newMeshNode(t, r)
		server, client, legacy := n.mustRun("server", "mesh"), n.mustRun("client", "mesh"), n.mustRun("legacy", "plain")
		n.wantMesh("at first", client, server, legacy)
		open := n.open(client, server)

		n.must(n.runtime.Kill())
		n.wantMesh("without containerd", client, server, legacy)
		n.startRuntime()
		n.must(testutil.Ping(open))
		n.must(n.restartApp(server)) // the runtime knows the pods again
		open = n.open(client, server)

		n.must(n.Agent.Kill())
		n.wantMesh("without agent", client, server, legacy)
		n.startAgent()
		n.must(n.WaitReady())
		n.must(testutil.Ping(open))
		n.wantMesh("after the agent's restart", client, server, legacy)

		n.must(n.Ztunnel.Kill())
		if err := reaches(legacy, server); err == nil {
			t.Error("without ztunnel: a stranger reached a pod that takes nothing but mTLS")
		}
		n.must(n.StartZtunnel())
		n.must(n.WaitReady())
		n.wantMesh("after ztunnel's restart", client, server, legacy)

		n.must(n.runtime.Kill())
		n.must(n.Agent.Kill())
		n.must(n.Ztunnel.Kill())
		n.startRuntime()
		n.startAgent()
		n.must(n.StartZtunnel())
		n.must(n.WaitReady())
		n.wantMesh("after the restart of all", client, server, legacy)
		late := n.mustRun("late", "mesh")
		n.wantMesh("a pod made after it", late, server, legacy)
		n.must(n.removePod(client)) // one that was made before
		n.wantUnknown("client")
	})
}

// TestPodThatGoesWhileTheAgentIsAway is removed by the runtime alone; the agent finds out.
func TestPodThatGoesWhileTheAgentIsAway(t *testing.T) {
	newest(t, func(t *testing.T, r release) {
		n := newMeshNode(t, r)
		server, client := n.mustRun("server", "mesh"), n.mustRun("client", "mesh")
		n.must(n.Agent.Kill())
		n.must(n.removePod(client))
		n.startAgent()
		n.must(n.WaitReady())
		n.wantUnknown("client")
		if err := reaches(n.mustRun("client", "mesh"), server); err != nil {
			t.Error(err)
		}
	})
}

// open opens a connection that stays.
func (n *node) open(from, to *pod) net.Conn {
	n.t.Helper()
	var c net.Conn
	testutil.Eventually(n.t, effect, func() (err error) { // a container that has started need not listen yet
		ctx, cancel := context.WithTimeout(context.Background(), effect)
		defer cancel()
		if c, err = from.Dial(ctx, "tcp", netip.AddrPortFrom(to.addr4, echoPort).String()); err != nil {
			return err
		}
		if _, err = testutil.Ask(c); err != nil {
			return errors.Join(err, c.Close())
		}
		return nil
	})
	n.t.Cleanup(func() { c.Close() })
	return c
}
