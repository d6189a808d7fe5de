// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// EnsureBPFFS makes dir a bpffs: it already is one, or it is an empty folder, on which one is mounted.
//
// A folder that something else is mounted on or that holds anything is an error; nothing is mounted over it.
func EnsureBPFFS(dir string) error {
	is, err := isBPFFS(dir)
	if err != nil || is {
		return err
	}
	foreign, err := isMountPoint(dir)
	if err != nil {
		return err
	}
	if foreign {
		return fmt.Errorf("mount bpffs on %q: another file system is mounted there", dir)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("mount bpffs: %w", err)
	}
	if len(entries) > 0 {
		return fmt.Errorf("mount bpffs on %q: the folder is not empty", dir)
	}
	if err := unix.Mount("bpf", dir, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return fmt.Errorf("mount bpffs on %q: %w", dir, err)
	}
	return nil
}

func isBPFFS(path string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return false, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	return uint32(st.Type) == uint32(unix.BPF_FS_MAGIC), nil
}

// isMountPoint compares devices, so it does not see a bind mount of the same file system.
func isMountPoint(dir string) (bool, error) {
	var here, above unix.Stat_t
	if err := unix.Stat(dir, &here); err != nil {
		return false, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	parent := filepath.Join(dir, "..")
	if err := unix.Stat(parent, &above); err != nil {
		return false, &os.PathError{Op: "stat", Path: parent, Err: err}
	}
	return here.Dev != above.Dev, nil
}

// requireBPFFS checks the nearest folder of path that exists.
func requireBPFFS(path string) error {
	for dir := filepath.Clean(path); ; dir = filepath.Dir(dir) {
		is, err := isBPFFS(dir)
		if errors.Is(err, os.ErrNotExist) && dir != filepath.Dir(dir) {
			continue
		}
		if err != nil {
			return err
		}
		if !is {
			return fmt.Errorf("%q is not on a bpffs: mount one (mount -t bpf bpf /sys/fs/bpf) or choose another pin root", path)
		}
		return nil
	}
}
