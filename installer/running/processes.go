// SPDX-License-Identifier: Apache-2.0

package running

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// process is one that is in the cgroup of a pod.
type process struct {
	pid            int
	uid, container string
	started        uint64 // clock ticks since boot
}

// processes looks for those of the pods, and returns one candidate for each namespace that they are in: that of the
// oldest process, which is the sandbox's own where it has one.
func (f *Finder) processes(uids map[string]bool) ([]candidate, error) {
	entries, err := os.ReadDir(f.proc())
	if err != nil {
		return nil, fmt.Errorf("look for the pods' processes: %w", err)
	}
	var all []process
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		text, err := os.ReadFile(f.proc(entry.Name(), "cgroup"))
		if err != nil {
			continue // It has ended.
		}
		if uid, container := inCgroup(string(text)); uids[uid] {
			all = append(all, process{pid, uid, container, f.startOf(entry.Name())})
		}
	}
	slices.SortFunc(all, func(a, b process) int {
		return cmp.Or(cmp.Compare(a.started, b.started), cmp.Compare(a.pid, b.pid))
	})
	return f.namespacesOf(all), nil
}

func (f *Finder) namespacesOf(all []process) []candidate {
	type key struct {
		uid        string
		dev, inode uint64
	}
	known := map[key]bool{}
	var found []candidate
	for _, p := range all {
		path := f.proc(strconv.Itoa(p.pid), "ns", "net")
		var st unix.Stat_t
		if unix.Stat(path, &st) != nil {
			continue
		}
		k := key{p.uid, st.Dev, st.Ino}
		if known[k] {
			continue
		}
		known[k] = true
		found = append(found, candidate{p.uid, p.container, f.stablePath(path)})
	}
	return found
}

// inCgroup reads /proc/PID/cgroup: the uid of the pod that the process is of, and its container's id.
//
//	cgroupfs  .../kubepods/burstable/pod1f0c-2b/CONTAINER
//	systemd   .../kubepods-burstable-pod1f0c_2b.slice/cri-containerd-CONTAINER.scope
//	containerd before systemd's scopes: ...-pod1f0c_2b.slice:cri-containerd:CONTAINER
//
// A line is one hierarchy, of which cgroup v1 has several. Both are empty for a process that is of no pod.
func inCgroup(text string) (uid, container string) {
	for line := range strings.Lines(text) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		parts := strings.FieldsFunc(fields[len(fields)-1], func(r rune) bool { return r == '/' || r == ':' })
		for i, part := range parts {
			if uid = uidIn(part); uid != "" && i+1 < len(parts) {
				return uid, containerIn(parts[i+1:])
			}
		}
	}
	return "", ""
}

// uidIn is the uid in the name of a pod's cgroup; empty if it is none.
func uidIn(name string) string {
	if slice, ok := strings.CutSuffix(name, ".slice"); ok {
		if !strings.HasPrefix(slice, "kubepods") {
			return ""
		}
		i := strings.LastIndex(slice, "-pod")
		if i < 0 {
			return ""
		}
		return strings.ReplaceAll(slice[i+len("-pod"):], "_", "-")
	}
	if uid, ok := strings.CutPrefix(name, "pod"); ok {
		return uid
	}
	return ""
}

// containerIn is the id in the name of a container's cgroup, below which there may be more.
func containerIn(parts []string) string {
	if parts[0] == "cri-containerd" && len(parts) > 1 {
		return parts[1]
	}
	name, isScope := strings.CutSuffix(parts[0], ".scope")
	if !isScope {
		return name
	}
	return name[strings.LastIndex(name, "-")+1:]
}

// startOf is when the process started; never, if it has ended.
func (f *Finder) startOf(pid string) uint64 {
	const never = ^uint64(0)
	text, err := os.ReadFile(f.proc(pid, "stat"))
	if err != nil {
		return never
	}
	// The second field is a name in brackets, which may have any bytes in it.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	const startTime = 22 - 3 // proc(5): fields are counted from 1, and two are before
	if len(fields) <= startTime {
		return never
	}
	t, err := strconv.ParseUint(fields[startTime], 10, 64)
	if err != nil {
		return never
	}
	return t
}

// stablePath is the path that the runtime keeps for the namespace behind path, or else path, which lasts as long as its
// process.
func (f *Finder) stablePath(path string) string {
	var want unix.Stat_t
	if unix.Stat(path, &want) != nil {
		return path
	}
	dirs := f.NetnsDirs
	if dirs == nil {
		dirs = usualNetnsDirs
	}
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, entry := range entries {
			var st unix.Stat_t
			kept := filepath.Join(dir, entry.Name())
			if unix.Stat(kept, &st) == nil && st.Dev == want.Dev && st.Ino == want.Ino {
				return kept
			}
		}
	}
	return path
}
