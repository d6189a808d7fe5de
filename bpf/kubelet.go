// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const kubeletName = "kubelet"

// kubeletCgroup returns the folder of kubelet's own cgroup below a mount. It is empty if there is no kubelet in the
// calling thread's network namespace, or if its cgroup is the root or cannot be seen: then nothing tells its connections
// from those of other processes of the host.
func kubeletCgroup(proc string, mount cgroupMount) string {
	host, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return ""
	}
	entries, err := os.ReadDir(proc)
	if err != nil {
		return ""
	}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		dir := filepath.Join(proc, e.Name())
		if name, err := os.ReadFile(filepath.Join(dir, "comm")); err != nil || strings.TrimSpace(string(name)) != kubeletName {
			continue
		}
		// A pod may call its processes what it likes.
		if ns, err := os.Readlink(filepath.Join(dir, "ns/net")); err != nil || ns != host {
			continue
		}
		if path := ownCgroup(dir, e.Name(), mount); path != "" {
			return path
		}
	}
	return ""
}

// ownCgroup believes the folder only if the process is listed there.
func ownCgroup(procDir, pid string, mount cgroupMount) string {
	text, err := os.ReadFile(filepath.Join(procDir, "cgroup"))
	if err != nil {
		return ""
	}
	below := cgroup2Path(string(text), mount.Root)
	if below == "" {
		return ""
	}
	path := filepath.Join(mount.Path, below)
	procs, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
	if err != nil || !slices.Contains(strings.Fields(string(procs)), pid) {
		return ""
	}
	return path
}

// cgroup2Path reads a process' folder of the cgroup2 hierarchy, seen from a mount's root, out of its cgroup file
// (cgroups(7)). It is empty if that is the root itself or not below it.
func cgroup2Path(text, root string) string {
	for line := range strings.Lines(text) {
		path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::")
		if !ok {
			continue
		}
		below, ok := strings.CutPrefix(path, strings.TrimSuffix(root, "/")+"/")
		if !ok {
			return ""
		}
		return below
	}
	return ""
}
