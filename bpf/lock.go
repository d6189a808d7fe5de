// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// ErrBusy reports a pod that another process attaches or detaches just now. Trying again later helps.
var ErrBusy = errors.New("pod is being attached or detached")

// podLock serialises what changes one pod, between processes too. Its folder is both the lock and the place where a
// pod is built and taken apart, so a folder in work that nobody has locked is what a process left that died half-way:
//
//	work/ID/new   being built; committed by renaming it to pods/ID
//	work/ID/old   being taken apart; was pods/ID until it was renamed to this
type podLock struct {
	dir  string
	file *os.File
}

// lockPod takes the lock of a pod. Without wait it returns ErrBusy rather than wait for another process.
func (n *Node) lockPod(id string, wait bool) (*podLock, error) {
	dir := filepath.Join(n.root, workDir, id)
	for {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("lock pod: %w", err)
		}
		l, err := lockDir(dir, wait)
		if errors.Is(err, os.ErrNotExist) {
			continue // its last holder removed it between our calls
		}
		if err != nil {
			return nil, fmt.Errorf("lock pod %q: %w", id, err)
		}
		return l, nil
	}
}

func lockDir(dir string, wait bool) (*podLock, error) {
	file, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	err = flock(file, wait)
	if err == nil {
		err = isSameDir(file, dir)
	}
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return &podLock{dir: dir, file: file}, nil
}

// lockTimeout is how long another process may hold a pod. It takes milliseconds, unless that process was stopped.
const lockTimeout = 5 * time.Second

func flock(file *os.File, wait bool) error {
	for deadline := time.Now().Add(lockTimeout); ; {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EWOULDBLOCK):
			return err
		case !wait:
			return ErrBusy
		case time.Now().After(deadline):
			return fmt.Errorf("%w for %s: look for a process that has %s open and does not go on", ErrBusy, lockTimeout, file.Name())
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// isSameDir wraps os.ErrNotExist if path no longer leads to the open folder: what we locked is gone.
func isSameDir(file *os.File, path string) error {
	mine, err := file.Stat()
	if err != nil {
		return err
	}
	there, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !os.SameFile(mine, there) {
		return &os.PathError{Op: "lock", Path: path, Err: os.ErrNotExist}
	}
	return nil
}

func (l *podLock) newDir() string { return filepath.Join(l.dir, "new") }
func (l *podLock) oldDir() string { return filepath.Join(l.dir, "old") }

// release unlocks. The folder stays only if something in it could not be taken apart, for Collect to try again.
func (l *podLock) release() {
	fault("done")
	_ = os.Remove(l.dir) // before unlocking, so that who waits sees that it is gone
	_ = l.file.Close()
}
