// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/installer/cniconf"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// TestFolderIsUsedWhereTheRuntimeReadsIt leaves the choice to the agent. Where the folder is read, another CNI may rewrite
// its list as often as it likes: no pod slips through.
func TestFolderIsUsedWhereTheRuntimeReadsIt(t *testing.T) {
	each(t, func(t *testing.T, r release) {
		n := newNode(t, r)
		n.startAgent("--cni-mode", "auto")
		n.must(n.StartZtunnel())
		n.must(n.WaitReady())
		testutil.Eventually(t, effect, func() error {
			log, err := os.ReadFile(n.lab.LogPath("agent-1"))
			if err == nil && !strings.Contains(string(log), "agent ready") {
				err = errors.New("the agent is not ready")
			}
			return err
		})
		n.waitChain("bridge", "portmap", "recorder", "sluice-cni")
		file := filepath.Join(n.NetDir(), "lab", cniconf.DropInName)
		if _, err := os.Stat(file); r.status != (err == nil) {
			t.Errorf("%s: %v", file, err)
		}
		if err := n.entryInPlace(); r.status == (err == nil) {
			t.Errorf("the list: %v", err)
		}
		if !r.status {
			return
		}
		server, legacy := n.mustRun("server", "mesh"), n.mustRun("legacy", "plain")
		stop, rewritten := make(chan struct{}), make(chan error, 1)
		go func() { rewritten <- n.rewrite(stop) }()
		for i := range 3 {
			n.wantMesh("while the list is rewritten", n.mustRun(fmt.Sprintf("client-%d", i), "mesh"), server, legacy)
		}
		close(stop)
		n.must(<-rewritten)

		n.must(os.RemoveAll(filepath.Dir(file)))
		testutil.Eventually(t, effect, func() error { _, err := os.Stat(file); return err })
		n.waitChain("bridge", "portmap", "recorder", "sluice-cni")
		n.must(n.Agent.Stop(effect))
		n.must(n.Uninstall())
		n.waitChain("bridge", "portmap", "recorder")
	})
}

// rewritePace is many times what a CNI gone wild has been seen to do.
const rewritePace = 300 * time.Millisecond

// rewrite replaces the list over and over until stop is closed.
func (n *node) rewrite(stop <-chan struct{}) error {
	pace := time.NewTicker(rewritePace)
	defer pace.Stop()
	for {
		select {
		case <-stop:
			return nil
		case <-pace.C:
			if err := n.replaceConflist(n.release.version); err != nil {
				return err
			}
		}
	}
}
