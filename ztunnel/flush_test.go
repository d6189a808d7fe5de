// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"strings"
	"testing"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// TestLastLinesOfTheAccessLogAreWritten: connections that end with ztunnel are told of, though "ztunnel ends" is below the
// level and pushes nothing out.
func TestLastLinesOfTheAccessLogAreWritten(t *testing.T) {
	p := start(t, false, "--xds-address=", "--ca-address=unix:///nowhere/ca.sock", "--log-level=error,access=info",
		"--drain-timeout=100ms", redirectedMesh)
	ns := p.addPod(p.snapshot(), "asker")
	const n = 20
	for range n {
		p.holdHandshake(ns)
	}
	p.quit()
	// At once: what is not written when run returns, a process that ends would lose.
	if out := p.stdout.String(); strings.Count(out, "15008") != n {
		t.Errorf("%d connections, got the lines:\n%s", n, out)
	}
}

// holdHandshake connects to the HBONE port and says nothing.
func (p *process) holdHandshake(ns *testutil.NS) {
	p.t.Helper()
	conn, err := ns.Dial(p.t.Context(), "tcp4", net.JoinHostPort("127.0.0.1", "15008"))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = conn.Close() })
}
