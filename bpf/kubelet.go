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
	host, err := hostNamespaces(proc)
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
		// A pod may call its processes what it likes, and may be on the host's network.
		if !inNamespaces(dir, host) {
			continue
		}
		if path := ownCgroup(dir, e.Name(), mount); path != "" {
			return path
		}
	}
	return ""
}

// hostNamespaces are those that kubelet is in: the calling thread's network, and the processes and mounts of process 1,
// or our own where those of process 1 cannot be read.
func hostNamespaces(proc string) (map[string]string, error) {
	net, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	all := map[string]string{"net": net}
	for _, name := range []string{"pid", "mnt"} {
		if all[name], err = os.Readlink(filepath.Join(proc, "1/ns", name)); err != nil {
			if all[name], err = os.Readlink("/proc/self/ns/" + name); err != nil {
				return nil, err
			}
		}
	}
	return all, nil
}

func inNamespaces(procDir string, want map[string]string) bool {
	for name, id := range want {
		if ns, err := os.Readlink(filepath.Join(procDir, "ns", name)); err != nil || ns != id {
			return false
		}
	}
	return true
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
