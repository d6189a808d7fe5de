// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/pin"

	"github.com/sluice-mesh/sluice/internal/netns"
)

// wantedLink is one attachment that a pod should have.
type wantedLink struct {
	pin  string // file name
	ns   *netns.NS
	prog loading
	hook hook // zero for dispatch, which is attached to the namespace
	mode AttachMode
}

// wantedLinks lists a pod's links in the order in which they are attached: bounced packets must find dispatch there.
// Guard's interfaces are those of the calling thread's namespace, the others' of ns.
func wantedLinks(ns *netns.NS, mode AttachMode, progs *programs, info *PodInfo) ([]wantedLink, error) {
	links := []wantedLink{
		{pin: dispatchLink, ns: ns, prog: progs.dispatch, mode: AttachTCX},
		{pin: localLink, ns: ns, prog: progs.local, mode: mode},
	}
	for _, i := range info.ifindexes() {
		links = append(links, wantedLink{pin: capturePin(i), ns: ns, prog: progs.capture, mode: mode})
	}
	for _, i := range info.HostIfindexes {
		links = append(links, wantedLink{pin: guardPin(i), prog: progs.guard, mode: mode})
	}
	for i := range links[1:] {
		var err error
		if links[i+1].hook, err = info.hookOf(links[i+1].pin); err != nil {
			return nil, err
		}
	}
	return links, nil
}

// do calls fn in the namespace of the hook.
func (w *wantedLink) do(fn func() error) error {
	if w.ns == nil {
		return fn()
	}
	return w.ns.Do(fn)
}

// attach makes the link or filter and pins it in dir under a name.
func (w *wantedLink) attach(dir, name string) error {
	prog, err := w.prog()
	if err != nil {
		return err
	}
	path := filepath.Join(dir, name)
	if w.mode == AttachClsact {
		// Pinned first, so that whoever takes the pod apart looks for the filter.
		if err := pinAlso(prog, path); err != nil {
			return fmt.Errorf("pin %s: %w", name, err)
		}
		fault("pinned " + name)
		if err := w.do(func() error { return w.hook.setFilter(prog) }); err != nil {
			return fmt.Errorf("attach %s: %w", name, err)
		}
		return nil
	}
	var l link.Link
	err = w.do(func() (err error) {
		l, err = w.create(prog)
		return err
	})
	if err != nil {
		return fmt.Errorf("attach %s: %w", name, err)
	}
	defer func() { _ = l.Close() }() // without a pin this detaches
	fault("created " + name)
	if err := l.Pin(path); err != nil {
		return fmt.Errorf("pin %s: %w", name, err)
	}
	return nil
}

// pinAlso pins a program that may be pinned elsewhere too. The library takes a second pin for a move.
func pinAlso(prog *ebpf.Program, path string) error {
	twin, err := prog.Clone()
	if err != nil {
		return err
	}
	defer func() { _ = twin.Close() }()
	return twin.Pin(path)
}

// create attaches a link. Each of a device waits 10 to 16 ms for a grace period, with the kernel's lock of all devices
// held (6.18): side by side they take as long as one after another, and most of AttachPod's time.
func (w *wantedLink) create(prog *ebpf.Program) (link.Link, error) {
	if w.hook.ifindex == 0 {
		return link.AttachNetNs(w.ns.FD(), prog)
	}
	l, err := link.AttachTCX(link.TCXOptions{
		Interface: w.hook.ifindex,
		Program:   prog,
		Attach:    w.hook.attach,
		Anchor:    link.Head(), // before other owners' programs: none of them may send a packet on unseen
	})
	if errors.Is(err, ebpf.ErrNotSupported) {
		return nil, fmt.Errorf("tcx needs Linux 6.6, use --attach-mode auto or clsact: %w", err)
	}
	return l, err
}

// update puts the program in the place of the one that runs now, without a gap. What is not attached, or no longer
// because its interface is gone, is attached.
func (w *wantedLink) update(dir string) error {
	if err := w.settle(dir); err != nil {
		return err
	}
	old, err := loadPin(filepath.Join(dir, w.pin))
	if errors.Is(err, os.ErrNotExist) {
		return w.attach(dir, w.pin)
	}
	if err != nil {
		return fmt.Errorf("open link %s: %w", w.pin, err)
	}
	defer func() { _ = old.Close() }()
	l, isLink := old.(link.Link)
	if isLink && w.mode == AttachTCX {
		return w.updateLink(l, dir)
	}
	if err := w.attach(dir, w.pin+newSuffix); err != nil {
		return err
	}
	fault("attached " + w.pin + newSuffix)
	return w.settle(dir)
}

// settle makes what took the place of another attachment the only one, after update or after a process that died in it.
func (w *wantedLink) settle(dir string) error {
	path := filepath.Join(dir, w.pin)
	now, err := loadPin(path + newSuffix)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open link %s%s: %w", w.pin, newSuffix, err)
	}
	defer func() { _ = now.Close() }()
	if prog, ok := now.(*ebpf.Program); ok {
		var live ebpf.ProgramID
		if err := w.do(func() (err error) { live, err = w.hook.liveProgram(); return err }); err != nil {
			return fmt.Errorf("read link %s: %w", w.pin, err)
		}
		if info, err := prog.Info(); err != nil {
			return fmt.Errorf("read link %s: %w", w.pin, err)
		} else if id, ok := info.ID(); !ok || id != live { // it died before it set the filter
			return os.Remove(path + newSuffix)
		}
	} else if err := w.do(w.hook.deleteFilter); err != nil {
		return fmt.Errorf("link %s: %w", w.pin, err)
	}
	fault("replaced " + w.pin)
	if err := dropReplaced(path); err != nil { // Only now: its successor runs.
		return err
	}
	fault("dropped " + w.pin)
	return os.Rename(path+newSuffix, path)
}

// dropReplaced detaches a link that another attachment took the place of. Without its pin it would be detached too, but
// some time later (6.18: a grace period and a work queue).
func dropReplaced(path string) error {
	old, err := loadPin(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open replaced link: %w", err)
	}
	defer func() { _ = old.Close() }()
	if l, ok := old.(link.Link); ok {
		return dropLink(l, path)
	}
	return nil
}

func (w *wantedLink) updateLink(l link.Link, dir string) error {
	target, err := targetOf(l)
	if err != nil { // closing it without its pin would detach it
		return fmt.Errorf("read link %s: %w", w.pin, err)
	}
	if target == 0 {
		if err := os.Remove(filepath.Join(dir, w.pin)); err != nil {
			return fmt.Errorf("remove severed link %s: %w", w.pin, err)
		}
		fault("removed severed " + w.pin)
		return w.attach(dir, w.pin)
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

// loadPin opens a pin of a link or of a filter's program.
func loadPin(path string) (pin.Pinner, error) {
	p, err := pin.Load(path, nil)
	if err != nil {
		return nil, err
	}
	switch p.(type) {
	case link.Link, *ebpf.Program:
		return p, nil
	}
	_ = p.Close()
	return nil, fmt.Errorf("pin %q: neither a link nor a program", path)
}

// pinnedProgram opens what a pin's link or filter runs.
func pinnedProgram(path string) (*ebpf.Program, error) {
	p, err := loadPin(path)
	if err != nil {
		return nil, err
	}
	l, ok := p.(link.Link)
	if !ok {
		return p.(*ebpf.Program), nil
	}
	defer func() { _ = l.Close() }()
	info, err := l.Info()
	if err != nil {
		return nil, err
	}
	return ebpf.NewProgramFromID(info.Program)
}
