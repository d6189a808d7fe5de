// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// namedDir is where "ip netns" and container runtimes keep namespaces that have a name.
const namedDir = "/run/netns"

// NamedPath is the path of the namespace called name.
func NamedPath(name string) string { return filepath.Join(namedDir, name) }

// CreateNamed makes an empty network namespace called name, as "ip netns add" does.
//
// It returns an error wrapping fs.ErrExist if the name is taken. RemoveNamed undoes it.
func CreateNamed(name string) (path string, err error) {
	path = NamedPath(name)
	if err := os.MkdirAll(namedDir, 0o755); err != nil {
		return "", err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return "", fmt.Errorf("create netns: %w", err)
	}
	_ = f.Close()
	done := make(chan error, 1)
	go func() { done <- unshareOnto(path) }()
	if err := <-done; err != nil {
		_ = os.Remove(path)
		return "", fmt.Errorf("create netns %q: %w", name, err)
	}
	return path, nil
}

// unshareOnto gives a new namespace the name path and returns to where the thread came from. A thread that cannot
// return stays locked, so that no other goroutine runs in the new namespace.
func unshareOnto(path string) error {
	runtime.LockOSThread()
	home, err := Current()
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer func() { _ = home.Close() }()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("unshare: %w", err)
	}
	// Leaving the thread to die would do too, unless it is the process's first: that one stays, and with it
	// /proc/self/ns/net would be the new namespace.
	defer func() {
		if unix.Setns(home.FD(), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
}

// RemoveNamed takes the name away; the namespace itself goes with its last process, socket or descriptor. Removing
// what is not there succeeds.
func RemoveNamed(name string) error {
	path := NamedPath(name)
	// EINVAL: a plain file, left by a creation that was cut short.
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove netns %q: unmount: %w", name, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove netns: %w", err)
	}
	return nil
}
