// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// startSweeper has a process wait for the end of this one. If that comes before the test has taken the cluster down, by a
// signal or a timeout, it removes what outlives processes: what was noted, and the test's folders.
func (c *Cluster) startSweeper() {
	c.t.Helper()
	log, err := os.Create(c.path("logs", "sweeper.log"))
	c.must(err)
	defer log.Close()
	ours, theirs, err := os.Pipe() // the end of this process closes our end
	c.must(err)
	cmd := exec.Command(c.path("bin", "nodeinit"), "sweep", c.path("noted"), filepath.Dir(c.dir))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = ours, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // what a terminal sends to this process is not for that one
	c.must(cmd.Start(), ours.Close())
	c.t.Cleanup(func() {
		_ = cmd.Process.Kill() // nothing is left for it
		_ = cmd.Wait()
		_ = theirs.Close()
	})
}

// note says what a sweeper has to remove: "netns NAME", "cgroup NAME".
func (c *Cluster) note(kind, name string) {
	c.t.Helper()
	f, err := os.OpenFile(c.path("noted"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	c.must(err)
	defer f.Close()
	_, err = fmt.Fprintln(f, kind, name)
	c.must(err)
}
