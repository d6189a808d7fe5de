// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// tunables are the machine's own settings that a kubelet would change, and what it wants them to be. It finds these
// values in files of the node's, and changes nothing.
var tunables = map[string]string{
	"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
	"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
}

type mount struct {
	fstype, source, target string
	flags                  uintptr
	data                   string
}

// mountAll gives the node file systems of its own where a node has state, or sees its namespaces. The folders below dir
// exist.
func mountAll(dir string, hierarchies []hierarchy) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make / private: %w", err)
	}
	if err := unix.Unmount("/sys", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount /sys: %w", err)
	}
	mounts := []mount{
		{fstype: "proc", source: "proc", target: "/proc"},
		{fstype: "sysfs", source: "sysfs", target: "/sys"},
		{fstype: "bpf", source: "bpf", target: "/sys/fs/bpf"},
		{fstype: "tmpfs", source: "tmpfs", target: "/run", data: "mode=755"},
		overlay(dir, "/etc"), overlay(dir, "/opt"),
		{source: filepath.Join(dir, "var/lib"), target: "/var/lib", flags: unix.MS_BIND},
		{source: filepath.Join(dir, "var/log"), target: "/var/log", flags: unix.MS_BIND},
	}
	for _, m := range append(mounts, cgroupMounts(hierarchies)...) {
		if err := m.do(); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.fstype, m.target, err)
		}
	}
	if err := hideTunables(); err != nil {
		return err
	}
	// What systemd does: mounts made below are to be seen in containers that ask for it, and the other way round.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make / shared: %w", err)
	}
	return os.MkdirAll("/run/netns", 0o755)
}

// overlay lets the node write into a folder of the machine's: what it writes stays below dir.
func overlay(dir, target string) mount {
	upper, work := filepath.Join(dir, target), filepath.Join(dir, "work", target)
	return mount{fstype: "overlay", source: "overlay", target: target, data: "lowerdir=" + target + ",upperdir=" + upper + ",workdir=" + work}
}

func (m mount) do() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil {
		return err
	}
	return unix.Mount(m.source, m.target, m.fstype, m.flags, m.data)
}

func hideTunables() error {
	for name, value := range tunables {
		file := filepath.Join("/run/tunables", name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(value+"\n"), 0o644)); err != nil {
			return err
		}
		if err := unix.Mount(file, filepath.Join("/proc/sys", name), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("hide %s: %w", name, err)
		}
	}
	return nil
}
