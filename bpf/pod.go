// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

func (m *podMaps) Close() error {
	var errs []error
	for _, each := range m.byName() {
		if *each != nil {
			errs = append(errs, (*each).Close())
		}
	}
	return errors.Join(errs...)
}

// Pod is one enrolled pod. Safe for concurrent use; it does not notice if another process detaches the pod.
type Pod struct {
	node *Node
	dir  string
	info PodInfo
	maps *podMaps
}

// Pod opens an attached pod. It wraps [ErrNotAttached] if there is none with this id. The caller closes it.
func (n *Node) Pod(id string) (*Pod, error) {
	if err := validID(id); err != nil {
		return nil, err
	}
	return n.openPod(filepath.Join(n.root, podsDir, id))
}

func (n *Node) openPod(dir string) (*Pod, error) {
	var p *Pod
	err := steady(dir, func() (err error) {
		if p != nil {
			_ = p.Close()
		}
		p, err = n.openFolder(dir)
		return err
	})
	if err != nil {
		if p != nil {
			_ = p.Close()
		}
		return nil, fmt.Errorf("pod %q: %w", filepath.Base(dir), err)
	}
	return p, nil
}

func (n *Node) openFolder(dir string) (*Pod, error) {
	maps, err := openPodMaps(dir)
	if err != nil {
		return nil, err
	}
	info, err := readInfo(maps.Info)
	if err != nil {
		_ = maps.Close()
		return nil, err
	}
	return &Pod{node: n, dir: dir, info: info, maps: maps}, nil
}

// steady has a pod's folder read, and again if another took its place meanwhile: it comes and goes as a whole. If there is
// none, or no longer, the error is [ErrNotAttached].
func steady(dir string, read func() error) error {
	for {
		before, err := os.Stat(dir)
		if errors.Is(err, os.ErrNotExist) {
			return ErrNotAttached
		}
		if err != nil {
			return err
		}
		err = read()
		after, gone := os.Stat(dir)
		switch {
		case gone == nil && os.SameFile(before, after):
			return err
		case gone != nil && !errors.Is(gone, os.ErrNotExist):
			return gone
		}
	}
}

// Info returns what was recorded when the pod was attached.
func (p *Pod) Info() PodInfo { return p.info }

// Close lets go of the pod's maps. It stays attached.
func (p *Pod) Close() error { return p.maps.Close() }

// Verdicts returns all counters since the pod was attached, zeros included.
func (p *Pod) Verdicts() (map[Verdict]uint64, error) {
	verdicts, err := readVerdicts(p.maps.Verdicts)
	if err != nil {
		return nil, fmt.Errorf("pod %q: %w", p.info.ID, err)
	}
	return verdicts, nil
}

// netnsCookie identifies the network namespace of a socket until the next boot.
func netnsCookie(fd int) (uint64, error) {
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("netns cookie (needs Linux 5.14): %w", err)
	}
	return cookie, nil
}
