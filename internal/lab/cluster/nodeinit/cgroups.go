// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// hierarchy is a cgroup hierarchy of the machine: version 1, of some controllers, or version 2.
type hierarchy struct {
	fstype, point string
	options       string // of version 1: controllers or name
}

func hierarchies() (all []hierarchy, err error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(data)) {
		// proc_pid_mountinfo(5): field 5 is the mount point; behind "-" come type, source and the hierarchy's options.
		before, after, _ := strings.Cut(line, " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if len(left) < 5 || len(right) < 3 {
			continue
		}
		switch right[0] {
		case "cgroup":
			all = append(all, hierarchy{right[0], left[4], controllers(right[2])})
		case "cgroup2":
			all = append(all, hierarchy{right[0], left[4], ""})
		}
	}
	return all, nil
}

// controllers leaves out of a hierarchy's options what does not say which hierarchy it is.
func controllers(options string) string {
	list := strings.Split(options, ",")
	return strings.Join(slices.DeleteFunc(list, func(o string) bool {
		return slices.Contains([]string{"rw", "ro", "xattr", "clone_children"}, o) || strings.HasPrefix(o, "release_agent=")
	}), ",")
}

// enterCgroups puts this process into the folder of all hierarchies that the node may use, and makes it the root of what
// the node sees.
func enterCgroups(folder string) ([]hierarchy, error) {
	all, err := hierarchies()
	if err != nil {
		return nil, err
	}
	for _, h := range all {
		dir := filepath.Join(h.point, folder)
		if err := h.makeFolder(dir); err != nil {
			return nil, err
		}
		if err := enter(dir); err != nil {
			return nil, err
		}
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return nil, fmt.Errorf("unshare cgroup namespace: %w", err)
	}
	for _, h := range all {
		if h.fstype == "cgroup2" { // whose root may have processes or controllers of others, not both
			if err := enter(filepath.Join(h.point, folder, "init")); err != nil {
				return nil, err
			}
		}
	}
	return all, nil
}

func (h hierarchy) makeFolder(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if !slices.Contains(strings.Split(h.options, ","), "cpuset") {
		return nil
	}
	// cgroup-v1/cpusets: a new one has no processor and no memory, and takes no process.
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(h.point, name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), value, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func enter(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0o644); err != nil {
		return fmt.Errorf("enter cgroup: %w", err)
	}
	return nil
}

// cgroupMounts show the node its own part of each hierarchy, where the machine has the whole.
func cgroupMounts(all []hierarchy) (mounts []mount) {
	const top = "/sys/fs/cgroup"
	if slices.ContainsFunc(all, func(h hierarchy) bool { return h.point != top }) {
		mounts = append(mounts, mount{fstype: "tmpfs", source: "tmpfs", target: top, data: "mode=755"})
	}
	for _, h := range all {
		mounts = append(mounts, mount{fstype: h.fstype, source: h.fstype, target: h.point, data: h.options})
	}
	return mounts
}

// joinCgroups puts this process, which comes from outside, into the node's: in version 2 into a folder of its name.
func joinCgroups(name string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		dir := h.point
		if h.fstype == "cgroup2" {
			dir = filepath.Join(dir, name)
		}
		if err := enter(dir); err != nil {
			return err
		}
	}
	return nil
}
