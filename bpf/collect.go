// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
)

// Pods lists the attached pods, sorted by id. Pods that cannot be read are left out and named in the error.
func (n *Node) Pods() ([]PodInfo, error) {
	ids, err := n.ids(podsDir)
	if err != nil {
		return nil, fmt.Errorf("list pods: %w", err)
	}
	var (
		pods []PodInfo
		errs []error
	)
	for _, id := range ids {
		var info PodInfo
		dir := filepath.Join(n.root, podsDir, id)
		err := steady(dir, func() (err error) {
			info, err = readInfoPin(filepath.Join(dir, infoMap))
			return err
		})
		switch {
		case err == nil:
			pods = append(pods, info)
		case errors.Is(err, ErrNotAttached): // detached since we listed it
		default:
			errs = append(errs, fmt.Errorf("pod %q: %w", id, err))
		}
	}
	return pods, errors.Join(errs...)
}

// Collect removes the pods that keep does not want, and always those whose namespace is gone, that are of an earlier
// boot, or were left half-made by a process that died. nil keeps all others. A pod that cannot be read, for lack of
// descriptors or because a newer release attached it, is left as it is and named in the error: to take it apart would
// let its traffic out in clear.
//
// Pods that another process attaches or detaches just now are left alone. It continues past errors and joins them;
// removed names what is gone, also then.
func (n *Node) Collect(keep func(PodInfo) bool) (removed []string, err error) {
	bootID, err := readBootID()
	if err != nil {
		return nil, fmt.Errorf("collect: %w", err)
	}
	half, err := n.ids(workDir)
	if err != nil {
		return nil, fmt.Errorf("collect: %w", err)
	}
	attached, err := n.ids(podsDir)
	if err != nil {
		return nil, fmt.Errorf("collect: %w", err)
	}
	ids := slices.Compact(slices.Sorted(slices.Values(append(half, attached...))))
	var errs []error
	for _, id := range ids {
		gone, err := n.collectPod(id, bootID, keep)
		if gone {
			removed = append(removed, id)
		}
		if err != nil && !errors.Is(err, ErrBusy) {
			errs = append(errs, fmt.Errorf("collect pod %q: %w", id, err))
		}
	}
	return removed, errors.Join(errs...)
}

func (n *Node) collectPod(id, bootID string, keep func(PodInfo) bool) (removed bool, err error) {
	lock, err := n.lockPod(id, false)
	if err != nil {
		return false, err
	}
	defer lock.release()
	half := exists(lock.newDir()) || exists(lock.oldDir())
	dir := filepath.Join(n.root, podsDir, id)
	wanted, err := n.isWanted(dir, bootID, keep)
	if wanted || err != nil {
		return half && err == nil, errors.Join(err, takeDown(lock.newDir()), takeDown(lock.oldDir()))
	}
	if !half && !exists(dir) {
		return false, nil
	}
	err = n.detachLocked(id, lock)
	return err == nil, err
}

// isWanted is false only for what is known to be garbage.
func (n *Node) isWanted(dir, bootID string, keep func(PodInfo) bool) (bool, error) {
	// Without links nothing is attached.
	pins, err := linkPins(dir)
	if errors.Is(err, os.ErrNotExist) || err == nil && len(pins) == 0 {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	// Severed: the namespace is gone, or somebody detached dispatch. Told by the kernel, so it holds for pods of any
	// release.
	target, err := linkTarget(filepath.Join(dir, dispatchLink))
	if err != nil || target == 0 {
		return false, err
	}
	info, err := readInfoPin(filepath.Join(dir, infoMap))
	if err != nil {
		return false, err
	}
	return info.BootID == bootID && (keep == nil || keep(info)), nil
}

// ids lists the folders in a folder of the root.
func (n *Node) ids(dir string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(n.root, dir))
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		ids = append(ids, e.Name())
	}
	return ids, nil
}

func readInfoPin(path string) (PodInfo, error) {
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err != nil {
		return PodInfo{}, err
	}
	defer func() { _ = m.Close() }()
	return readInfo(m)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
