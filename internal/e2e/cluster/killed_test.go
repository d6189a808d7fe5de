// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/sluice-mesh/sluice/internal/lab/cluster"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// toBeKilled has a process of this test's binary only bring up a cluster.
const toBeKilled = "SLUICE_E2E_TO_BE_KILLED"

// bringUp is what TestMain does in that process: it says what the cluster's traces are told by, and waits for its end.
func bringUp() {
	c := cluster.Start(&outlive{}, cluster.Config{Nodes: 1})
	fmt.Println("up", c.Outside.Name, c.Nodes[0].NS.Name, filepath.Base(filepath.Dir(c.Dir())))
	select {}
}

// TestKilledTestLeavesNothing kills a process with a cluster: nobody is left to take it down.
func TestKilledTestLeavesNothing(t *testing.T) {
	requireE2E(t)
	testutil.RequireRoot(t)
	runtime.LockOSThread() // the signal at a parent's death means the thread
	defer runtime.UnlockOSThread()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), toBeKilled+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = cmd.Process.Kill(), cmd.Wait() }()
	var own []string
	for lines := bufio.NewScanner(out); own == nil && lines.Scan(); {
		if words := strings.Fields(lines.Text()); len(words) == 4 && words[0] == "up" {
			own = words[1:]
		}
		t.Log(lines.Text())
	}
	if own == nil {
		t.Fatal("no cluster came up")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	testutil.Eventually(t, effect, func() error {
		for what, list := range traces(t) {
			for _, line := range list {
				if slices.ContainsFunc(own, func(name string) bool { return strings.Contains(line, name) }) {
					return fmt.Errorf("%s: %s is still there", what, line)
				}
			}
		}
		return nil
	})
}
