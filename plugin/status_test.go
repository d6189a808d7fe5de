// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

func TestStatusFailsOnlyUntilTheAgentWasReadyOnce(t *testing.T) {
	l := newLab(t)
	run := filepath.Join(l.dir, "run")
	notReady := func() {
		t.Helper()
		l.cni("STATUS", noSandbox, nil).wantError(t, types.ErrPluginNotAvailable,
			"the Sluice agent has not been ready since this node booted", l.dir+"/run/agent.sock")
	}
	notReady()
	l.must(nodeapi.MarkReady(run))
	if o := l.cni("STATUS", noSandbox, nil).wantOK(t); o.stdout != "" {
		t.Errorf("stdout: got %q, want nothing", o.stdout)
	}
	l.agent.wantVerbs() // it is not worth a question

	l.agent.stop() // a restart
	l.cni("STATUS", noSandbox, nil).wantOK(t)

	// A reboot that kept the folder: /run need not be a tmpfs.
	l.must(os.WriteFile(filepath.Join(run, "ready"), []byte("6ba7b810-9dad-11d1-80b4-00c04fd430c8\n"), 0o644))
	notReady()
	l.must(os.WriteFile(filepath.Join(run, "ready"), nil, 0o644))
	notReady()
	l.must(os.RemoveAll(run))
	notReady()

	// The node is not to wait for an agent that left for good.
	last := nodeapi.LastKnown{}
	l.must(last.Save(l.settings["stateDir"].(string)))
	notReady()
	last.Left = true
	l.must(last.Save(l.settings["stateDir"].(string)))
	l.cni("STATUS", noSandbox, nil).wantOK(t)
}

func TestStatusDoesNotWaitForAnAgentThatHangs(t *testing.T) {
	l := newLab(t)
	l.agent.stop()
	answer(t, l.settings["agentSocket"].(string), "")
	l.must(nodeapi.MarkReady(filepath.Join(l.dir, "run")))
	start := time.Now()
	l.cni("STATUS", noSandbox, nil).wantOK(t)
	if d := time.Since(start); d > decideTimeout/2 {
		t.Errorf("took %v", d)
	}
}

func TestStatusNamesBadConfiguration(t *testing.T) {
	l := newLab(t)
	l.cni("STATUS", noSandbox, map[string]any{"color": 1}).wantError(t, types.ErrInvalidNetworkConfig, `unknown key "color"`)
}

func TestVersion(t *testing.T) {
	l := newLab(t)
	var got struct {
		CNIVersion        string   `json:"cniVersion"`
		SupportedVersions []string `json:"supportedVersions"`
	}
	o := l.cni("VERSION", noSandbox, nil).wantOK(t)
	if err := json.Unmarshal([]byte(o.stdout), &got); err != nil {
		t.Fatal(err)
	}
	if want := []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}; !slices.Equal(got.SupportedVersions, want) {
		t.Errorf("got %v, want %v", got.SupportedVersions, want)
	}
}

func TestVersionsAreChecked(t *testing.T) {
	l := newLab(t)
	s, _ := l.sandbox("plain", "p")
	for _, version := range []string{"0.1.0", "0.2.0", "0.3.0", "1.2.0"} {
		l.cni("ADD", s, map[string]any{"cniVersion": version}).wantError(t, types.ErrIncompatibleCNIVersion)
	}
	l.cni("CHECK", s, map[string]any{"cniVersion": "0.3.1"}).wantError(t, types.ErrIncompatibleCNIVersion, "does not allow CHECK")
	for _, verb := range []string{"GC", "STATUS"} {
		l.cni(verb, noSandbox, map[string]any{"cniVersion": "1.0.0"}).wantError(t, types.ErrIncompatibleCNIVersion, "does not allow "+verb)
	}
}
