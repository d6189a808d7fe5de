// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// writeSysctl sets a value of the calling thread's network namespace. path begins with /proc/.
//
// Container runtimes mount /proc/sys read-only. Who has CAP_SYS_ADMIN, as the agent's container, then writes through a
// proc file system of its own that is mounted nowhere, which needs Linux 5.2.
func writeSysctl(path, value string) error {
	err := os.WriteFile(path, []byte(value), 0)
	if !errors.Is(err, unix.EROFS) {
		return err
	}
	proc, err := detachedProc()
	if err != nil {
		return fmt.Errorf("%q is read-only: %w", path, err)
	}
	defer func() { _ = unix.Close(proc) }()
	fd, err := unix.Openat(proc, strings.TrimPrefix(path, procDir+"/"), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// detachedProc returns the root of a new proc file system, which ends when it is closed.
func detachedProc() (fd int, err error) {
	fs, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open proc: %w", err)
	}
	defer func() { _ = unix.Close(fs) }()
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("make proc: %w", err)
	}
	fd, err = unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return -1, fmt.Errorf("mount proc: %w", err)
	}
	return fd, nil
}
