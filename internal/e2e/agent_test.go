// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/sluice-mesh/sluice/internal/lab"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

func TestAgentKilledAndRestartedDisturbsNobody(t *testing.T) {
	m := newMesh(t)
	open := m.open()
	for _, n := range m.Nodes {
		m.must(n.Agent.Kill())
	}
	m.wantReach("without agents")
	m.must(testutil.Ping(open))
	for _, n := range m.Nodes {
		m.must(n.StartAgent())
	}
	for _, n := range m.Nodes {
		m.must(n.WaitReady())
	}
	m.must(testutil.Ping(open))
	m.wantReach("after the agents' restart")
	late := m.addPod(0, "late", "mesh")
	if err := reaches(late, m.server, 4); err != nil {
		t.Errorf("a pod made after the restart: %v", err)
	}
	for i, p := range []*lab.Pod{m.client, m.server} {
		m.must(m.Nodes[i].Check(p))
	}
}

func TestAgentStartedTwiceRefusesTheSecond(t *testing.T) {
	m := newMesh(t)
	n := m.Nodes[0]
	first := n.Agent
	m.must(n.StartAgent())
	m.wantReach("while the second waits for the first to go")
	m.wantLog("agent-node1-2", "another agent runs on", n.RunDir())
	if err := n.Agent.Wait(effect); err != nil {
		t.Errorf("second agent: %v", err)
	}
	if !first.Alive() {
		t.Error("the first agent ended")
	}
	m.wantReach("with two agents started")
}

func TestAddWithoutAgent(t *testing.T) {
	m := newMesh(t)
	n := m.Nodes[0]
	m.must(n.Agent.Kill())
	t.Run("a pod of an enrolled namespace has to wait", func(t *testing.T) {
		_, err := n.AddPod(lab.PodSpec{Name: "early", Namespace: "mesh"})
		wantCode(t, err, types.ErrTryAgainLater, "agent.sock", "connection refused", `namespace "mesh" has pods in the mesh`)
	})
	t.Run("any other passes", func(t *testing.T) {
		p, err := n.AddPod(lab.PodSpec{Name: "other", Namespace: "plain"})
		if err != nil {
			t.Fatal(err)
		}
		if err := reaches(p, m.server, 4); err != nil {
			t.Error(err)
		}
	})
	t.Run("the runtime's next try works", func(t *testing.T) {
		m.must(n.StartAgent())
		m.must(n.WaitReady())
		early := lab.PodSpec{Name: "early", Namespace: "mesh"}
		m.must(n.DelPod(n.Pod(early)))
		p, err := n.AddPod(early)
		if err != nil {
			t.Fatal(err)
		}
		testutil.Eventually(t, effect, func() error { return reaches(p, m.server, 6) })
	})
}

func TestDelWithoutAgentDetaches(t *testing.T) {
	m := newMesh(t)
	n := m.Nodes[0]
	m.must(n.Agent.Kill())
	m.must(n.Del(m.client))
	m.must(n.Del(m.client))
	if err := n.Check(m.client); err == nil {
		t.Error("CHECK passes after DEL")
	}
	m.must(n.DelPod(m.client))
	m.must(n.StartAgent())
	m.must(n.WaitReady())
	testutil.Eventually(t, effect, func() error {
		if out := m.status(0); strings.Contains(out, "client") {
			return errors.New("the agent still lists the pod:\n" + out)
		}
		return nil
	})
}

func TestStatusFailsUntilTheAgentWasReady(t *testing.T) {
	m := newLab(t)
	m.must(m.UpBare())
	n := m.Nodes[0]
	m.must(n.Install())
	wantCode(t, n.Status(), types.ErrPluginNotAvailable, "has not been ready since this node booted")
	m.write("mesh.yaml", manifests)
	m.must(n.StartAgent())
	m.must(n.StartZtunnel())
	m.must(n.WaitReady())
	m.must(n.Status())
	m.must(n.Agent.Kill())
	m.must(n.Status())
}

func TestAddFailsWithoutZtunnelAndLeavesNothing(t *testing.T) {
	m := newMesh(t)
	n := m.Nodes[0]
	m.must(n.Ztunnel.Kill())
	testutil.Eventually(t, effect, func() error {
		if !strings.Contains(m.status(0), "none") && !strings.Contains(m.status(0), "0 connected") {
			return errors.New(m.status(0))
		}
		return nil
	})
	began := time.Now()
	_, err := n.AddPod(lab.PodSpec{Name: "early", Namespace: "mesh"})
	wantCode(t, err, types.ErrTryAgainLater, "ztunnel")
	t.Logf("refused after %v: %v", time.Since(began).Round(time.Millisecond), err)
	if out := m.status(0); strings.Contains(out, "early") {
		t.Errorf("the agent kept the pod:\n%s", out)
	}
	m.must(n.StartZtunnel())
	m.must(n.WaitReady())
	m.wantReach("with the next ztunnel")
}

func TestCheckNamesWhatIsMissing(t *testing.T) {
	m := newMesh(t)
	n := m.Nodes[0]
	m.must(n.Check(m.client))
	// Nobody repairs while it is stopped.
	m.must(n.Agent.Signal(syscall.SIGSTOP))
	defer func() { _ = n.Agent.Signal(syscall.SIGCONT) }()
	inside(m.client).Run(t, "ip", "-6", "rule", "flush")
	inside(m.client).Run(t, "sysctl", "-qw", "net.ipv4.conf.lo.accept_local=0")
	err := n.Check(m.client)
	for _, want := range []string{"no IPv6 rule", "accept_local"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("CHECK: got %v, want it to name %q", err, want)
		}
	}
}

func TestGCRemovesOnlyWhatIsNotValid(t *testing.T) {
	m := newMesh(t)
	n := m.Nodes[0]
	kept := m.addPod(0, "kept", "mesh")
	m.must(n.GC(kept))
	m.must(n.Check(kept))
	if err := reaches(kept, m.server, 4); err != nil {
		t.Errorf("the valid pod: %v", err)
	}
	if out := m.status(0); strings.Contains(out, "client") {
		t.Errorf("the pod that is not valid is still there:\n%s", out)
	}
}

// status is what the command line shows of a node; its exit code does not matter here.
func (m *mesh) status(node int) string {
	n := m.Nodes[node]
	out, _ := m.Output(n.NS, effect, m.Bin("sluice-installer"), "status", "--run-dir", n.RunDir())
	return out
}

// wantCode wants a CNI error with a code and all of parts in its text.
func wantCode(t *testing.T, err error, code uint, parts ...string) {
	t.Helper()
	var cni *types.Error
	if !errors.As(err, &cni) {
		t.Fatalf("got %v, want a CNI error with code %d", err, code)
	}
	text := cni.Msg + " " + cni.Details
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%q does not say %q", text, part)
		}
	}
	if cni.Code != code {
		t.Errorf("code: got %d, want %d (%s)", cni.Code, code, text)
	}
}

func TestInstallAndUninstallTwice(t *testing.T) {
	m := newLab(t)
	m.must(m.UpBare())
	n := m.Nodes[0]
	read := func() string {
		data, err := os.ReadFile(n.ConflistPath())
		m.must(err)
		return string(data)
	}
	before := read()
	m.must(n.Install())
	installed := read()
	if kinds := pluginTypes(t, installed); kinds[len(kinds)-1] != "sluice-cni" {
		t.Errorf("plugins: got %v, want sluice-cni last", kinds)
	}
	m.must(n.Install())
	if again := read(); again != installed {
		t.Errorf("the second install changed the file:\n%s\nfrom\n%s", again, installed)
	}
	for range 2 {
		m.must(n.Uninstall())
		if after := read(); after != before {
			t.Errorf("after uninstall: got\n%s\nwant\n%s", after, before)
		}
	}
}

func pluginTypes(t *testing.T, conflist string) (kinds []string) {
	t.Helper()
	var list struct{ Plugins []struct{ Type string } }
	if err := json.Unmarshal([]byte(conflist), &list); err != nil {
		t.Fatal(err)
	}
	for _, p := range list.Plugins {
		kinds = append(kinds, p.Type)
	}
	return kinds
}
