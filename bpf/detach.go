// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// DetachPod takes everything of a pod away: links, pins and, if its namespace is alive, rules, routes and sysctl.
//
// It continues past errors, joins them, and may be called again. A pod that is not attached is no error.
func (n *Node) DetachPod(id string) error {
	if err := validID(id); err != nil {
		return fmt.Errorf("detach pod: %w", err)
	}
	if !n.hasTrace(id) {
		return nil
	}
	lock, err := n.lockPod(id, true)
	if err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	defer lock.release()
	if err := n.detachLocked(id, lock); err != nil {
		return fmt.Errorf("detach pod %q: %w", id, err)
	}
	return nil
}

func (n *Node) hasTrace(id string) bool {
	for _, dir := range []string{podsDir, workDir} {
		if _, err := os.Stat(filepath.Join(n.root, dir, id)); !errors.Is(err, os.ErrNotExist) {
			return true
		}
	}
	return false
}

// detachLocked takes the pod off the list, then apart. If that fails half-way, what is left is in the lock's folder,
// where the next call or Collect finds it.
func (n *Node) detachLocked(id string, lock *podLock) error {
	errs := []error{takeDown(lock.newDir()), takeDown(lock.oldDir())}
	dir := filepath.Join(n.root, podsDir, id)
	info, unread := readInfoPin(filepath.Join(dir, infoMap))
	err := os.Rename(dir, lock.oldDir())
	if errors.Is(err, os.ErrNotExist) {
		return errors.Join(errs...)
	}
	fault("off the list")
	errs = append(errs, err, takeDown(lock.oldDir()))
	// Last: host probes reach the app for as long as dispatch is there. What a crash leaves, the next AttachHost removes.
	if unread == nil && err == nil {
		errs = append(errs, n.unregister(&info))
	}
	return errors.Join(errs...)
}
