// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// Names of a pod's attachments. A capture's or guard's name ends in the ifindex: bpffs takes no dots, interfaces do.
//
// A pin holds a link, or, in clsact mode, the program that a filter of the same hook runs.
const (
	dispatchLink  = "dispatch"
	localLink     = "local"
	capturePrefix = "capture_"
	guardPrefix   = "guard_"

	// newSuffix marks what is about to take the place of the pin without it.
	newSuffix = "_new"
)

func capturePin(ifindex int) string { return capturePrefix + strconv.Itoa(ifindex) }
func guardPin(ifindex int) string   { return guardPrefix + strconv.Itoa(ifindex) }

func isLinkPin(name string) bool {
	return name == dispatchLink || name == localLink || name == localLink+newSuffix ||
		strings.HasPrefix(name, capturePrefix) || strings.HasPrefix(name, guardPrefix)
}

// isGuardPin tells what is attached in the host's namespace from what is attached in the pod's.
func isGuardPin(name string) bool { return strings.HasPrefix(name, guardPrefix) }

// pinIfindex is the number of a capture's or guard's device.
func pinIfindex(name string) (int, error) {
	_, number, _ := strings.Cut(strings.TrimSuffix(name, newSuffix), "_")
	i, err := strconv.Atoi(number)
	if err != nil {
		return 0, fmt.Errorf("link %s: not ours: %w", name, err)
	}
	return i, nil
}

// hookOf tells where the program of a pin belongs, dispatch excluded.
func (i *PodInfo) hookOf(pin string) (hook, error) {
	kind, _, _ := strings.Cut(pin, "_")
	h := hook{attach: ebpf.AttachTCXEgress, filter: fmt.Sprintf("sluice_%s_%x", kind, i.NetnsCookie)}
	if kind == localLink {
		h.ifindex = loopbackIfindex
		return h, nil
	}
	if isGuardPin(pin) {
		h.attach = ebpf.AttachTCXIngress
	}
	var err error
	h.ifindex, err = pinIfindex(pin)
	return h, err
}

// targetOf is what a link is attached to: an ifindex, or the inode of a network namespace. 0 means that it is gone.
func targetOf(l link.Link) (uint64, error) {
	info, err := l.Info()
	if err != nil {
		return 0, err
	}
	if ns := info.NetNs(); ns != nil {
		return uint64(ns.NetnsInode), nil
	}
	if tcx := info.TCX(); tcx != nil {
		return uint64(tcx.Ifindex), nil
	}
	return 0, fmt.Errorf("link is of type %v", info.Type)
}

// linkTarget is targetOf for the pin of a link.
func linkTarget(path string) (uint64, error) {
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		return 0, err
	}
	defer func() { _ = l.Close() }()
	return targetOf(l)
}

// dropLink detaches a pinned link now, whoever else holds it.
func dropLink(l link.Link, path string) error {
	target, err := targetOf(l)
	if err == nil && target != 0 {
		if err := l.Detach(); err != nil {
			return fmt.Errorf("detach %s: %w", filepath.Base(path), err)
		}
	}
	return nil
}

// linkPins lists the link pins in dir.
func linkPins(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var pins []string
	for _, e := range entries {
		if isLinkPin(e.Name()) {
			pins = append(pins, e.Name())
		}
	}
	return pins, nil
}

// ifindexOf resolves an interface's name in the calling thread's network namespace.
func ifindexOf(name string) (int, error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return 0, fmt.Errorf("interface %q: %w", name, err)
	}
	if l.Attrs().Index == loopbackIfindex {
		return 0, fmt.Errorf("interface %q: is the loopback", name)
	}
	return l.Attrs().Index, nil
}

// hasDevice looks for a device in the calling thread's network namespace.
func hasDevice(ifindex int) (bool, error) {
	_, err := netlink.LinkByIndex(ifindex)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return false, nil
	}
	return err == nil, err
}
