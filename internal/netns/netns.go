// SPDX-License-Identifier: Apache-2.0

// Package netns opens, enters and leaves network namespaces without ever leaking one into another goroutine.
package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// ErrNotNetns reports a path or descriptor that is not a network namespace.
var ErrNotNetns = errors.New("not a network namespace")

// ID identifies a network namespace for as long as it lives. The kernel may give the same numbers to a later namespace
// once every reference to this one is gone, so an ID alone is no proof of identity over time.
type ID struct {
	Dev   uint64
	Inode uint64
}

// NS is an open network namespace. It keeps the namespace alive until Close. Safe for concurrent use.
type NS struct {
	file *os.File
}

// Open opens the namespace behind path (/proc/PID/ns/net, /run/netns/NAME).
//
// It returns an error wrapping [ErrNotNetns] if path is anything else, for example the plain file that is left when a
// bind mount is gone. The caller owns the result and closes it.
func Open(path string) (*NS, error) {
	// O_NONBLOCK: whatever else may be at path, a FIFO say, must not hold us up.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open netns %q: %w", path, err)
	}
	return newNS(fd, path)
}

// FromFD wraps a descriptor that was received from another process and takes ownership of it, also on error.
func FromFD(fd int) (*NS, error) {
	return newNS(fd, fmt.Sprintf("fd %d", fd))
}

// Current opens the calling thread's network namespace.
func Current() (*NS, error) {
	return Open("/proc/thread-self/ns/net")
}

func newNS(fd int, name string) (*NS, error) {
	kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("open netns %q: %w", name, ErrNotNetns)
	}
	return &NS{file: os.NewFile(uintptr(fd), name)}, nil
}

// FD is the namespace's descriptor. It stays owned by ns and is valid until Close.
func (ns *NS) FD() int { return int(ns.file.Fd()) }

// ID returns what tells this namespace from the others that exist now.
func (ns *NS) ID() (ID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(ns.FD(), &st); err != nil {
		return ID{}, fmt.Errorf("stat netns %q: %w", ns.file.Name(), err)
	}
	return ID{Dev: st.Dev, Inode: st.Ino}, nil
}

// Close lets go of the namespace.
func (ns *NS) Close() error { return ns.file.Close() }

// Do calls fn on a thread that is inside the namespace and returns fn's error.
//
// fn runs on a goroutine of its own: it must not start goroutines that rely on the namespace, and what it creates
// (sockets, descriptors) stays in the namespace after Do returns. If the thread cannot return to where it came from it
// is thrown away, so no other goroutine ever runs in the wrong namespace.
func (ns *NS) Do(fn func() error) error {
	done := make(chan error, 1)
	go func() { done <- ns.doLocked(fn) }()
	return <-done
}

// Enter moves the calling thread into the namespace. The goroutine must be locked to it, and has to see to the way back;
// [NS.Do] does. A Close meanwhile waits, so that the descriptor cannot be another namespace's by then.
func (ns *NS) Enter() error {
	raw, err := ns.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("enter netns %q: %w", ns.file.Name(), err)
	}
	var serr error
	if err := raw.Control(func(fd uintptr) { serr = unix.Setns(int(fd), unix.CLONE_NEWNET) }); err != nil {
		return fmt.Errorf("enter netns %q: %w", ns.file.Name(), err)
	}
	if serr != nil {
		return fmt.Errorf("enter netns %q: %w", ns.file.Name(), serr)
	}
	return nil
}

// doLocked leaves the goroutine locked to its thread when it must not be reused: the runtime then ends the thread.
func (ns *NS) doLocked(fn func() error) (err error) {
	runtime.LockOSThread()
	home, err := Current()
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer func() { _ = home.Close() }()

	if err := ns.Enter(); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer func() {
		if unix.Setns(home.FD(), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return fn()
}
