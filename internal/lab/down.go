// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/netns"
)

// Down removes the lab, however much of it exists, and then checks that nothing stays. Down again succeeds.
//
// Pods go first, while the agents still answer, as a runtime would delete them; then every process that the lab
// started, by its pid file; then namespaces (with them links, rules and routes), mounts (with them pins) and files.
func (l *Lab) Down() error {
	ids := l.namespaceIDs()
	var errs []error
	for _, n := range l.Nodes {
		errs = append(errs, n.delPods())
	}
	procs, err := l.Procs()
	errs = append(errs, err)
	for _, p := range procs {
		errs = append(errs, p.Signal(unix.SIGTERM))
	}
	for _, p := range procs {
		errs = append(errs, p.Stop(stopGrace))
	}
	// A process that was killed may take a moment to be gone. One that somebody else started in here is not ours to end;
	// what could tell of it stays until it is.
	if err := Poll(5*time.Second, func() error { return processesIn(ids) }); err != nil {
		return errors.Join(append(errs, fmt.Errorf("%w\nend what you started yourself, then run this again", err))...)
	}
	for _, n := range l.Nodes {
		errs = append(errs, n.unmount())
	}
	for _, name := range l.namespaces() {
		errs = append(errs, netns.RemoveNamed(name))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	// Only now: never remove a folder that may still be a mount point of something.
	if err := l.checkMounts(); err != nil {
		return err
	}
	if err := os.RemoveAll(l.Dir); err != nil {
		return err
	}
	return l.checkGone()
}

// delPods runs CNI DEL for every pod that was made, and removes its namespace.
func (n *Node) delPods() error {
	pods, err := n.notedPods()
	errs := []error{err}
	for _, p := range pods {
		errs = append(errs, n.DelPod(p))
	}
	return errors.Join(errs...)
}

// unmount removes the node's bpffs and with it every pin, which detaches every program.
func (n *Node) unmount() error {
	err := unix.Unmount(n.bpffs(), unix.MNT_DETACH)
	// EINVAL: not a mount point.
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %q: %w", n.bpffs(), err)
	}
	return nil
}

// namespaceIDs lists the lab's namespaces by what the kernel calls them.
func (l *Lab) namespaceIDs() map[string]string {
	ids := map[string]string{}
	for _, name := range l.namespaces() {
		var st unix.Stat_t
		if unix.Stat(netns.NamedPath(name), &st) == nil {
			ids[fmt.Sprintf("net:[%d]", st.Ino)] = name
		}
	}
	return ids
}

// checkGone names every trace that is left: namespaces, mounts, the folder. Processes were looked for while their
// namespaces were there: once one is gone, the kernel gives its number to the next that anybody makes.
func (l *Lab) checkGone() error {
	errs := []error{l.checkMounts()}
	for _, name := range l.namespaces() {
		errs = append(errs, fmt.Errorf("network namespace %s is still there", name))
	}
	if _, err := os.Stat(l.Dir); err == nil {
		errs = append(errs, fmt.Errorf("folder %s is still there", l.Dir))
	}
	return errors.Join(errs...)
}

// processesIn names the processes that run in one of the namespaces.
func processesIn(ids map[string]string) error {
	spaces, err := filepath.Glob("/proc/[0-9]*/ns/net")
	errs := []error{err}
	for _, path := range spaces {
		link, err := os.Readlink(path)
		if name, ours := ids[link]; err == nil && ours {
			errs = append(errs, fmt.Errorf("process %s still runs in %s", strings.Split(path, "/")[2], name))
		}
	}
	return errors.Join(errs...)
}

// checkMounts names the mounts that are left below the lab's folder.
func (l *Lab) checkMounts() error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	defer f.Close()
	var errs []error
	for s := bufio.NewScanner(f); s.Scan(); {
		// proc(5): the mount point is field 5.
		if fields := strings.Fields(s.Text()); len(fields) > 4 && strings.HasPrefix(fields[4], l.Dir+"/") {
			errs = append(errs, fmt.Errorf("mount %s is still there", fields[4]))
		}
	}
	return errors.Join(errs...)
}
