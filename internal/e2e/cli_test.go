// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/internal/lab"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// cli runs a command of sluice-installer on a node.
func (m *mesh) cli(node int, args ...string) (out string, ok bool) {
	m.t.Helper()
	n := m.Nodes[node]
	argv := append([]string{m.Bin("sluice-installer"), args[0], "--run-dir", n.RunDir(), "--state-dir", n.StateDir(), "--pin-root", n.PinRoot()}, args[1:]...)
	out, err := m.Output(n.NS, 2*effect, argv...)
	return out, err == nil
}

// why asks and reads the answer.
func (m *mesh) why(pod, dst string) (a struct {
	Encrypted, Because string
	Refused            string
	Policies           []string
	LastFlows          []struct{ Path, Kind string }
	LastConnections    []struct{ Verdict, Policy, Error string }
}) {
	m.t.Helper()
	out, ok := m.cli(0, "why", pod, dst, "-o", "json")
	if !ok {
		m.t.Fatalf("why %s %s: %s", pod, dst, out)
	}
	if err := json.Unmarshal([]byte(out), &a); err != nil {
		m.t.Fatalf("why %s %s: %v: %s", pod, dst, err, out)
	}
	return a
}

const denyClient = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny-client, namespace: mesh}
spec:
  selector: {matchLabels: {app: server}}
  action: DENY
  rules: [{from: [{source: {principals: [cluster.local/ns/mesh/sa/client]}}]}]
`

// TestWhy: a captured, a denied, a passed and an excluded connection are explained.
func TestWhy(t *testing.T) {
	m := newMesh(t)
	target := echoOf(m.server, 4).String()
	m.wantReach("before")
	testutil.Eventually(t, effect, func() error {
		a := m.why("mesh/client", target)
		if a.Encrypted != "yes" || !strings.Contains(a.Because, "spiffe://cluster.local/ns/mesh/sa/server") || len(a.Policies) > 0 || a.Refused != "" {
			return fmt.Errorf("captured: got %+v", a)
		}
		if len(a.LastFlows) == 0 || a.LastFlows[0].Path != "captured" || len(a.LastConnections) == 0 || a.LastConnections[0].Verdict != "mtls" {
			return fmt.Errorf("what happened: got %+v", a)
		}
		return nil
	})

	outside := netip.AddrPortFrom(lab.OutsideAddr4, 80)
	ln, err := m.Listen(m.NS("outside"), outside.String())
	m.must(err)
	defer func() { _ = ln.Close() }()
	conn, err := m.DialTimeout(m.client.NS, outside.String(), effect)
	m.must(err)
	m.must(conn.Close())
	testutil.Eventually(t, effect, func() error {
		a := m.why("client", outside.String())
		if a.Encrypted != "no" || !strings.Contains(a.Because, "not in the mesh") || len(a.LastFlows) == 0 || a.LastFlows[0].Path != "passthrough" {
			return fmt.Errorf("outside: got %+v", a)
		}
		return nil
	})
	if a := m.why("client", m.client.Addr6.String()); a.Encrypted != "no" || !strings.Contains(a.Because, "the pod itself") {
		t.Errorf("itself: got %+v", a)
	}

	m.write("deny.yaml", denyClient)
	testutil.Eventually(t, effect, func() error {
		if err := reaches(m.client, m.server, 4); err == nil {
			return fmt.Errorf("the client is not denied")
		}
		a := m.why("client", target)
		last := len(a.LastConnections) - 1
		if !slices.Contains(a.Policies, "DENY mesh/deny-client (WorkloadSelector)") || last < 0 || a.LastConnections[last].Verdict != "refused-by-peer" ||
			!strings.HasSuffix(a.Refused, "by the ztunnel of mesh/server: explicitly denied by: mesh/deny-client") {
			return fmt.Errorf("denied: got %+v", a)
		}
		return nil
	})

	m.write("mesh.yaml", strings.Replace(manifests, "{name: client, namespace: mesh,",
		"{name: client, namespace: mesh, annotations: {sluice.dev/exclude-outbound-ports: \"7000\"},", 1))
	testutil.Eventually(t, effect, func() error {
		if a := m.why("client", target); a.Encrypted != "no" || !strings.Contains(a.Because, "exclude") {
			return fmt.Errorf("excluded: got %+v", a)
		}
		return nil
	})
	for _, bad := range [][]string{{"why"}, {"why", "client"}, {"why", "client", "no.such.service"}, {"why", "nobody", target}, {"verify", "a", "b"}} {
		if out, ok := m.cli(0, bad...); ok {
			t.Errorf("%v: got no error: %s", bad, out)
		}
	}
}

// TestFlowsAreFollowed: the stream tells of a connection from its opening to its end.
func TestFlowsAreFollowed(t *testing.T) {
	m := newMesh(t)
	n := m.Nodes[0]
	_, err := m.Start(n.NS, "flows", m.Bin("sluice-installer"), "flows", "--follow", "--pod", "mesh/client", "-o", "json",
		"--run-dir", n.RunDir(), "--state-dir", n.StateDir(), "--pin-root", n.PinRoot())
	m.must(err)
	testutil.Eventually(t, effect, func() error { // a connection made before the stream is open is not told of
		m.wantReach("while followed")
		if len(m.Lines("flows", `"kind":"open"`)) == 0 {
			return errors.New("nothing is followed yet")
		}
		return nil
	})
	m.wantReach("while followed")
	for _, kind := range []string{"open", "close"} {
		m.wantLog("flows", `"kind":"`+kind+`"`, `"remote":"`+echoOf(m.server, 6).String()+`"`, `"path":"captured"`, `"outbound":true`)
	}
	out, ok := m.cli(0, "flows", "--pod", "client")
	if !ok || !strings.Contains(out, "captured") || !strings.Contains(out, "EVENT") {
		t.Errorf("flows: %s", out)
	}
}

// clearSlot takes a socket out of a pod's map.
func (m *mesh) clearSlot(node int, p *lab.Pod, slot bpf.Slot) {
	m.t.Helper()
	n, err := bpf.OpenNode(m.Nodes[node].PinRoot())
	m.must(err)
	defer func() { _ = n.Close() }()
	pod, err := n.Pod(m.pinned(node, p).ID)
	m.must(err)
	m.must(errors.Join(pod.ClearListener(slot), pod.Close()))
}

// TestVerify: a pod that is well passes; each kind of damage fails with a line that names it.
func TestVerify(t *testing.T) {
	m := newMesh(t)
	m.wantReach("before")
	admin := "127.0.0.1:15000"
	wantSuccess := func() error {
		out, ok := m.cli(0, "verify", "mesh/client", "--ztunnel-admin", admin)
		if !ok || strings.Contains(out, "FAILED") || strings.Count(out, "carried in mutual TLS to spiffe://cluster.local/ns/mesh/sa/server") != 2 {
			return fmt.Errorf("verify: %s", out)
		}
		return nil
	}
	testutil.Eventually(t, effect, wantSuccess)
	for range 10 { // however fast ztunnel refuses the live connections
		m.must(wantSuccess())
	}
	wantFailure := func(what string, parts ...string) {
		t.Helper()
		testutil.Eventually(t, effect, func() error {
			out, ok := m.cli(0, "verify", "mesh/client", "--ztunnel-admin", admin)
			if ok {
				return fmt.Errorf("%s: verify passed: %s", what, out)
			}
			words := strings.Join(strings.Fields(out), " ") // columns are as wide as they have to be
			for _, part := range parts {
				if !strings.Contains(words, part) {
					return fmt.Errorf("%s: %q is not said: %s", what, part, out)
				}
			}
			return nil
		})
	}
	m.must(m.Nodes[0].Ztunnel.Kill())
	wantFailure("without ztunnel", "FAILED ztunnel", "none is connected")
	m.must(m.Nodes[0].StartZtunnel())
	m.must(m.Nodes[0].WaitReady())
	admin = "127.0.0.1:15100" // the lab's second ztunnel on a node
	testutil.Eventually(t, effect, wantSuccess)
	m.must(m.Nodes[0].Agent.Kill()) // it would repair
	wantFailure("without agent", "FAILED agent", "is not running")
	m.clearSlot(0, m.client, bpf.SlotOutbound6)
	wantFailure("without socket", "FAILED listeners slot outbound6 is empty", "FAILED live IPv6", "the pod's slot is empty", "ok rule", "ok live IPv4")
	// The ztunnel that why asks by default is gone.
	if a := m.why("client", echoOf(m.server, 6).String()); a.Encrypted != "no" || !strings.Contains(a.Refused, "slot outbound6") {
		t.Errorf("why, without socket: got %+v", a)
	}
	if a := m.why("client", echoOf(m.server, 4).String()); a.Encrypted != "unknown" || !strings.Contains(a.Because, "does not leave in clear") {
		t.Errorf("why, without ztunnel: got %+v", a)
	}
	inside(m.client).Run(t, "ip", "rule", "del", "priority", "500")
	wantFailure("without rule", "FAILED rule no IPv4 rule 500", "ok route", "FAILED live IPv4", "did not come back into the pod")
	m.detachByHand(0, m.client)
	if out, ok := m.cli(0, "verify", "mesh/client"); ok || !strings.Contains(out, "no pod") {
		t.Errorf("detached: %s", out)
	}
}
