// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// Names of the host's link pins, below node/.
const (
	probeLink = "probe"
	bind4Link = "bind4"
	bind6Link = "bind6"
	flowsLink = "flows"

	// movingLink is the new link of a program that is moved to another cgroup.
	movingLink = "moving"
)

var hostPins = []string{probeLink, bind4Link, bind6Link, flowsLink, movingLink}

// hostLink is one program at a cgroup.
type hostLink struct {
	pin    string // path
	cgroup string
	hook   ebpf.AttachType
	prog   *ebpf.Program
}

// put attaches the program, or gives it the place of the one that runs there.
func (h *hostLink) put() error {
	want, err := cgroupID(h.cgroup)
	if err != nil {
		return err
	}
	l, err := link.LoadPinnedLink(h.pin, nil)
	if errors.Is(err, os.ErrNotExist) {
		return h.attach(h.pin)
	}
	if err != nil {
		return fmt.Errorf("open link: %w", err)
	}
	defer func() { _ = l.Close() }()
	id, err := cgroupOf(l)
	if err != nil {
		return err
	}
	if id != want {
		return h.move()
	}
	if err := l.Update(h.prog); err != nil {
		return fmt.Errorf("update %s: %w", filepath.Base(h.pin), err)
	}
	return nil
}

// move attaches the program where it is wanted before it takes it away from where it was.
func (h *hostLink) move() error {
	moving := filepath.Join(filepath.Dir(h.pin), movingLink)
	if err := dropHostLink(moving); err != nil { // of a process that died here
		return err
	}
	if err := h.attach(moving); err != nil {
		return err
	}
	if err := dropHostLink(h.pin); err != nil {
		return err
	}
	return os.Rename(moving, h.pin)
}

// attach leaves other owners' programs at the cgroup as they are: links are always of the kind that goes together.
func (h *hostLink) attach(pin string) error {
	l, err := link.AttachCgroup(link.CgroupOptions{Path: h.cgroup, Attach: h.hook, Program: h.prog})
	if err != nil {
		return fmt.Errorf("attach %s to cgroup %q: %w", filepath.Base(pin), h.cgroup, err)
	}
	defer func() { _ = l.Close() }() // without a pin this detaches
	if err := l.Pin(pin); err != nil {
		return fmt.Errorf("pin %s: %w", filepath.Base(pin), err)
	}
	return nil
}

// dropHostLink detaches a pinned link, whoever else holds it. One that is not there is no error.
func dropHostLink(pin string) error {
	l, err := link.LoadPinnedLink(pin, nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open link: %w", err)
	}
	defer func() { _ = l.Close() }()
	if err := l.Detach(); err != nil {
		return fmt.Errorf("detach %s: %w", filepath.Base(pin), err)
	}
	if err := l.Unpin(); err != nil {
		return fmt.Errorf("unpin %s: %w", filepath.Base(pin), err)
	}
	return nil
}

// linkCgroup returns the id of the cgroup that a pinned link is attached to, 0 if that is gone.
func linkCgroup(pin string) (uint64, error) {
	l, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		return 0, err
	}
	defer func() { _ = l.Close() }()
	return cgroupOf(l)
}

func cgroupOf(l link.Link) (uint64, error) {
	info, err := l.Info()
	if err != nil {
		return 0, err
	}
	cgroup := info.Cgroup()
	if cgroup == nil {
		return 0, fmt.Errorf("link is of type %v", info.Type)
	}
	return cgroup.CgroupId, nil
}
