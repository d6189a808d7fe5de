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

	"github.com/sluice-mesh/sluice/internal/netns"
)

// Names of a pod's link pins. A capture or guard link's name ends in the ifindex: bpffs takes no dots, interfaces do.
const (
	dispatchLink  = "dispatch"
	localLink     = "local"
	capturePrefix = "capture_"
	guardPrefix   = "guard_"
)

func isLinkPin(name string) bool {
	return name == dispatchLink || name == localLink ||
		strings.HasPrefix(name, capturePrefix) || strings.HasPrefix(name, guardPrefix)
}

// wantedLink is one attachment that a pod should have.
type wantedLink struct {
	pin     string // file name
	ifindex int    // 0 for dispatch, which is attached to the namespace
	ns      *netns.NS
	prog    loading
	hook    ebpf.AttachType
}

// wantedLinks lists a pod's links in the order in which they are attached: bounced packets must find dispatch there.
// Guard's interfaces are those of the calling thread's namespace, the others' of ns.
func wantedLinks(ns *netns.NS, progs *programs, captured, guarded []int) []wantedLink {
	links := []wantedLink{
		{pin: dispatchLink, ns: ns, prog: progs.dispatch},
		{pin: localLink, ns: ns, prog: progs.local, ifindex: loopbackIfindex, hook: ebpf.AttachTCXEgress},
	}
	for _, i := range captured {
		links = append(links, wantedLink{pin: capturePin(i), ns: ns, prog: progs.capture, ifindex: i, hook: ebpf.AttachTCXEgress})
	}
	for _, i := range guarded {
		links = append(links, wantedLink{pin: guardPin(i), prog: progs.guard, ifindex: i, hook: ebpf.AttachTCXIngress})
	}
	return links
}

func capturePin(ifindex int) string { return capturePrefix + strconv.Itoa(ifindex) }
func guardPin(ifindex int) string   { return guardPrefix + strconv.Itoa(ifindex) }

// attach makes the link and pins it in dir.
func (w *wantedLink) attach(dir string) error {
	prog, err := w.prog()
	if err != nil {
		return err
	}
	var l link.Link
	run := func() (err error) {
		l, err = w.create(prog)
		return err
	}
	if w.ns != nil {
		err = w.ns.Do(run)
	} else {
		err = run()
	}
	if err != nil {
		return fmt.Errorf("attach %s: %w", w.pin, err)
	}
	defer func() { _ = l.Close() }() // without a pin this detaches
	if err := l.Pin(filepath.Join(dir, w.pin)); err != nil {
		return fmt.Errorf("pin %s: %w", w.pin, err)
	}
	return nil
}

func (w *wantedLink) create(prog *ebpf.Program) (link.Link, error) {
	if w.ifindex == 0 {
		return link.AttachNetNs(w.ns.FD(), prog)
	}
	l, err := link.AttachTCX(link.TCXOptions{
		Interface: w.ifindex,
		Program:   prog,
		Attach:    w.hook,
		Anchor:    link.Head(), // before other owners' programs: none of them may send a packet on unseen
	})
	if errors.Is(err, ebpf.ErrNotSupported) {
		return nil, fmt.Errorf("tcx needs Linux 6.6: %w", err)
	}
	return l, err
}

// update puts the program into the pinned link, without a gap. If there is no pin, or its interface is gone, a new link
// takes its place.
func (w *wantedLink) update(dir string) error {
	path := filepath.Join(dir, w.pin)
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, os.ErrNotExist) {
		return w.attach(dir)
	}
	if err != nil {
		return fmt.Errorf("open link %s: %w", w.pin, err)
	}
	defer func() { _ = l.Close() }()
	target, err := targetOf(l)
	if err != nil { // closing it without its pin would detach it
		return fmt.Errorf("read link %s: %w", w.pin, err)
	}
	if target == 0 {
		if err := l.Unpin(); err != nil {
			return fmt.Errorf("remove severed link %s: %w", w.pin, err)
		}
		return w.attach(dir)
	}
	prog, err := w.prog()
	if err != nil {
		return err
	}
	if err := l.Update(prog); err != nil {
		return fmt.Errorf("update %s: %w", w.pin, err)
	}
	return nil
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

// pinTarget is targetOf for a pin.
func pinTarget(path string) (uint64, error) {
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		return 0, err
	}
	defer func() { _ = l.Close() }()
	return targetOf(l)
}

// detachPin detaches a pinned link now, whoever else holds it, and removes the pin.
func detachPin(path string) error {
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		return fmt.Errorf("open link: %w", err)
	}
	defer func() { _ = l.Close() }()
	target, err := targetOf(l)
	if err == nil && target != 0 {
		if err := l.Detach(); err != nil {
			return fmt.Errorf("detach %s: %w", filepath.Base(path), err)
		}
	}
	if err := l.Unpin(); err != nil {
		return fmt.Errorf("unpin %s: %w", filepath.Base(path), err)
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
