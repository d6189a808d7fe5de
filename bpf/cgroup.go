// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const selfMountinfo = "/proc/self/mountinfo"

// cgroupMount is a mount of the cgroup2 hierarchy.
type cgroupMount struct {
	Path string // where it is
	Root string // the folder of the hierarchy that is mounted there, "/" for all that this process may see
}

// noCgroup2Error says why there is no cgroup2.
type noCgroup2Error struct{ v1 bool }

func (e *noCgroup2Error) Error() string {
	if e.v1 {
		return "no cgroup2 mount: this node has cgroup v1 only: mount one (mount -t cgroup2 none DIR) or boot with systemd.unified_cgroup_hierarchy=1"
	}
	return "no cgroup2 mount in " + selfMountinfo + ": mount the host's /sys/fs/cgroup into this container"
}

// parseCgroupMounts lists the cgroup2 mounts in the text of a mountinfo file (proc_pid_mountinfo(5)). One that a later
// mount hides is left out.
func parseCgroupMounts(text string) ([]cgroupMount, error) {
	var mounts []cgroupMount
	v1 := false
	for line := range strings.Lines(text) {
		before, after, ok := strings.Cut(line, " - ")
		fields, types := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 6 || len(types) < 1 {
			continue
		}
		root, path := unescape(fields[3]), unescape(fields[4])
		mounts = hideBelow(mounts, path)
		switch types[0] {
		case "cgroup2":
			mounts = append(mounts, cgroupMount{Path: path, Root: root})
		case "cgroup":
			v1 = true
		}
	}
	if len(mounts) == 0 {
		return nil, &noCgroup2Error{v1}
	}
	return mounts, nil
}

// hideBelow drops the mounts that a new one at path covers.
func hideBelow(mounts []cgroupMount, path string) []cgroupMount {
	var kept []cgroupMount
	for _, m := range mounts {
		if m.Path != path && !strings.HasPrefix(m.Path, strings.TrimSuffix(path, "/")+"/") {
			kept = append(kept, m)
		}
	}
	return kept
}

// unescape undoes the octal escapes of blanks and backslashes, such as \040.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+3 >= len(s) {
			b.WriteByte(s[i])
			continue
		}
		b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
		i += 3
	}
	return b.String()
}

// findCgroup2 returns the mount of the cgroup2 hierarchy that shows most of it: the root, if any does.
func findCgroup2() (cgroupMount, error) {
	text, err := os.ReadFile(selfMountinfo)
	if err != nil {
		return cgroupMount{}, err
	}
	mounts, err := parseCgroupMounts(string(text))
	if err != nil {
		return cgroupMount{}, err
	}
	for _, m := range mounts {
		if isCgroupRoot(m.Path) {
			return m, nil
		}
	}
	return mounts[0], nil
}

// isCgroupRoot tells the root of the hierarchy from all other folders, also in a cgroup namespace, where those call
// themselves "/", too: only the root has no type.
func isCgroupRoot(path string) bool {
	if requireCgroup2(path) != nil {
		return false
	}
	_, err := os.Stat(filepath.Join(path, "cgroup.type"))
	return errors.Is(err, os.ErrNotExist)
}

func requireCgroup2(path string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	if st.Type != unix.CGROUP2_SUPER_MAGIC {
		return fmt.Errorf("%q is not a cgroup2 folder", path)
	}
	return nil
}

// cgroupID is what the kernel calls the cgroup at path. A cgroup that is made anew has another one.
func cgroupID(path string) (uint64, error) {
	if err := requireCgroup2(path); err != nil {
		return 0, err
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Ino, nil
}
