// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/sluice-mesh/sluice/internal/lab"
)

// down removes the pods by the runtime, then whatever a broken one has left, then the lab.
func (n *node) down() error {
	var errs []error
	if n.runtime != nil {
		if n.runtime.Alive() {
			errs = append(errs, n.removeAll())
		}
		errs = append(errs, n.runtime.Stop(10*time.Second), n.killLeftovers(), n.unmount(), n.removeCgroups())
	}
	if n.Ztunnel != nil {
		errs = append(errs, n.Ztunnel.Kill()) // it would drain pods that an agent has not taken from it
	}
	if n.conn != nil {
		errs = append(errs, n.conn.Close())
	}
	return errors.Join(append(errs, n.lab.Down())...)
}

func (n *node) removeAll() error {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	list, err := n.cri.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	return inParallel(len(list.Items), func(i int) error { return n.removeSandbox(list.Items[i].Id) })
}

// killLeftovers ends shims, known by our socket in their arguments, and processes in our pods' cgroups.
func (n *node) killLeftovers() error {
	var pids []int
	for _, dir := range n.cgroups() {
		data, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		for _, pid := range strings.Fields(string(data)) {
			if id, err := strconv.Atoi(pid); err == nil {
				pids = append(pids, id)
			}
		}
	}
	shims, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range shims {
		args, _ := os.ReadFile(path)
		if !bytes.Contains(args, []byte("containerd-shim")) || !bytes.Contains(args, []byte(n.socket())) {
			continue
		}
		if id, err := strconv.Atoi(strings.Split(path, "/")[2]); err == nil {
			pids = append(pids, id)
		}
	}
	var errs []error
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// unmount takes off what is mounted below the runtime's folder, the innermost first.
func (n *node) unmount() error {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var points []string
	for line := range strings.Lines(string(data)) {
		// proc(5): the mount point is field 5.
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], n.ctrd()+"/") {
			points = append(points, f[4])
		}
	}
	var errs []error
	for _, p := range slices.Backward(points) {
		if err := unix.Unmount(p, unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %q: %w", p, err))
		}
	}
	return errors.Join(errs...)
}

// cgroups are the folders of our pods in all hierarchies, the innermost last.
func (n *node) cgroups() (dirs []string) {
	tops, _ := filepath.Glob("/sys/fs/cgroup/*/" + n.lab.Name)
	for _, top := range append(tops, "/sys/fs/cgroup/"+n.lab.Name) {
		_ = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
	}
	return dirs
}

func (n *node) removeCgroups() error {
	return lab.Poll(5*time.Second, func() error { // one is busy until its last process is reaped
		var errs []error
		for _, dir := range slices.Backward(n.cgroups()) {
			if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	})
}

// inParallel calls f(0) to f(count-1) side by side and joins their errors.
func inParallel(count int, f func(int) error) error {
	errs := make(chan error, count)
	for i := range count {
		go func() { errs <- f(i) }()
	}
	var all error
	for range count {
		all = errors.Join(all, <-errs)
	}
	return all
}
