// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-mesh/sluice/internal/lab/cluster"
)

// fiveCommands are those of docs/INSTALL.md, as they stand there.
func fiveCommands(t *testing.T) []string {
	t.Helper()
	doc, err := os.ReadFile("../../../docs/INSTALL.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(doc), "\n## In five commands\n")
	_, block, opened := strings.Cut(section, "```sh\n")
	block, _, closed := strings.Cut(block, "```")
	commands := strings.Split(strings.TrimSpace(block), "\n")
	if !found || !opened || !closed || len(commands) != 5 {
		t.Fatalf("docs/INSTALL.md has no block of five commands: %q", commands)
	}
	return commands
}

// TestNewUser types what docs/INSTALL.md says and nothing else, and wants to see at the end what it promises.
func TestNewUser(t *testing.T) {
	requireE2E(t)
	c := cluster.Start(t, cluster.Config{Nodes: 1}) // of its own: no other test has installed anything
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := c.TryKubectl("describe", "pods", "--namespace=hello")
			t.Log(out)
		}
	})
	var seen string
	for _, command := range fiveCommands(t) {
		seen = c.Shell(t, root, command)
		t.Logf("$ %s\n%s", command, seen)
	}
	const id = `.identity="spiffe://cluster.local/ns/hello/sa/`
	for _, direction := range []string{"outbound", "inbound"} {
		shown := false
		for line := range strings.Lines(seen) {
			shown = shown || strings.Contains(line, `direction="`+direction+`"`) && strings.Contains(line, `verdict="mtls"`) &&
				strings.Contains(line, "src"+id+`client"`) && strings.Contains(line, "dst"+id+`server"`)
		}
		if !shown {
			t.Errorf("no line of a connection %s in mutual TLS between client and server in what the last command printed", direction)
		}
	}
}
