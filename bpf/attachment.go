// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"os"
	"path/filepath"
	"slices"

	"github.com/sluice-mesh/sluice/internal/netns"
)

// attachment is one call of AttachPod under the pod's lock.
type attachment struct {
	node    *Node
	cfg     PodConfig
	info    PodInfo
	ns      *netns.NS
	missing map[string]error // those of cfg.Interfaces that no device has as its name
	lock    *podLock
}

func (a *attachment) podDir() string { return filepath.Join(a.node.root, podsDir, a.cfg.ID) }

func (a *attachment) run() (*Pod, error) {
	// Leftovers of a process that died half-way.
	if err := errors.Join(takeDown(a.lock.newDir()), takeDown(a.lock.oldDir())); err != nil {
		return nil, err
	}
	if err := addMissingMaps(a.podDir()); err != nil {
		return nil, err
	}
	old, err := a.node.openPod(a.podDir())
	if err == nil && old.info.NetnsCookie == a.info.NetnsCookie {
		a.info.LoopbackWasOpen = old.info.LoopbackWasOpen
		return old, closeOnError(old, a.replace(old))
	}
	switch {
	case err == nil:
		_ = old.Close()
		if err := a.node.detachLocked(a.cfg.ID, a.lock); err != nil {
			return nil, err
		}
	case !errors.Is(err, ErrNotAttached):
		return nil, err // what is there may be capturing: not ours to take apart unread
	}
	for _, err := range a.missing {
		return nil, err
	}
	return a.create()
}

func closeOnError(p *Pod, err error) error {
	if err != nil {
		_ = p.Close()
	}
	return err
}

// create builds the pod aside. The rename at its end is the commit point.
func (a *attachment) create() (_ *Pod, err error) {
	dir := a.lock.newDir()
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	fault("folder")
	defer func() {
		if err != nil {
			err = errors.Join(err, takeDown(dir), a.node.unregister(&a.info))
		}
	}()
	if err := a.build(dir); err != nil {
		return nil, err
	}
	fault("built")
	if err := os.Rename(dir, a.podDir()); err != nil {
		return nil, err
	}
	fault("committed")
	dir = a.podDir()
	return a.node.openPod(dir)
}

func (a *attachment) build(dir string) error {
	// Not earlier: leftovers of ours in the namespace are gone only now.
	err := a.ns.Do(func() (err error) {
		a.info.LoopbackWasOpen, err = loopbackIsOpen()
		return err
	})
	if err != nil {
		return err
	}
	size, err := a.grandfatheredSize()
	if err != nil {
		return err
	}
	maps, err := createPodMaps(dir, size)
	if err != nil {
		return err
	}
	p := &Pod{node: a.node, dir: dir, info: a.info, maps: maps}
	defer func() { _ = p.Close() }()
	fault("maps")
	// First: it is what lets another process clean up after us.
	if err := writeInfo(maps.Info, &a.info); err != nil {
		return err
	}
	fault("record")
	if err := a.node.register(&a.info); err != nil {
		return err
	}
	if err := a.fillSlots(p); err != nil {
		return err
	}
	if err := a.ns.Do(steer); err != nil {
		return err
	}
	fault("steered")
	if err := a.eachLink(p, a.info, inOrder, func(w *wantedLink) error { return w.attach(dir, w.pin) }); err != nil {
		return err
	}
	return a.grandfather(maps)
}

// replace gives an attached pod new programs and settings.
func (a *attachment) replace(p *Pod) error {
	if err := a.keepCaptured(p); err != nil {
		return err
	}
	if a.info.Addresses == nil {
		a.info.Addresses = p.info.Addresses
	}
	if err := a.node.register(&a.info); err != nil {
		return err
	}
	migrated, err := a.migrateMaps(p)
	if err != nil {
		return err
	}
	if err := a.fillSlots(p); err != nil {
		return err
	}
	if err := a.ns.Do(steer); err != nil {
		return err
	}
	fault("steered")
	wanted, err := a.updateLinks(p)
	if err != nil {
		return err
	}
	if err := commitMaps(p.dir, migrated); err != nil {
		return err
	}
	pins, err := linkPins(p.dir)
	if err != nil {
		return err
	}
	for _, pin := range pins {
		if !wanted[pin] { // a device that is gone, or a guard that the caller gave up
			if err := (&site{info: &p.info, ns: a.ns}).detach(p.dir, pin); err != nil {
				return err
			}
			fault("detached " + pin)
		}
	}
	p.info = a.info
	return writeInfo(p.maps.Info, &a.info)
}

// keepCaptured adds the devices that p has under capture to those that have the wanted names now. A pod that may rename
// its devices could otherwise have a decoy captured in place of the device that leads out, or none.
func (a *attachment) keepCaptured(p *Pod) error {
	live, err := p.liveCaptures(a.ns)
	if err != nil {
		return err
	}
	a.info.Interfaces = slices.Clone(a.info.Interfaces)
	for _, c := range live {
		delete(a.missing, c.Name)
		if !slices.Contains(a.info.Captured, c) {
			a.info.Captured = append(a.info.Captured, c)
		}
		if !slices.Contains(a.info.Interfaces, c.Name) {
			a.info.Interfaces = append(a.info.Interfaces, c.Name)
		}
	}
	for _, err := range a.missing {
		return err
	}
	return nil
}

func (a *attachment) fillSlots(p *Pod) error {
	for slot, fd := range a.cfg.Listeners {
		if err := p.SetListener(slot, fd); err != nil {
			return err
		}
	}
	return nil
}

// eachLink loads the programs with the settings of info and calls do for those links that the pod should have that choose
// returns. It stays on the calling thread, whose namespace is that of guard's interfaces.
func (a *attachment) eachLink(p *Pod, info PodInfo, choose choice, do func(*wantedLink) error) error {
	excluded, err := info.Exclude.create()
	if err != nil {
		return err
	}
	defer excluded.Close()
	progs := loadPrograms(&a.node.maps, p.maps, excluded, info.settings())
	defer progs.Close()
	links, err := wantedLinks(a.ns, a.node.mode, progs, &info)
	if err != nil {
		return err
	}
	links = choose(links)
	for i := range links {
		if err := do(&links[i]); err != nil {
			return err
		}
		fault("has " + links[i].pin)
	}
	return nil
}

// grandfatheredSize leaves room for the connections that open between counting and attaching.
func (a *attachment) grandfatheredSize() (size int, err error) {
	if !a.cfg.Grandfather {
		return 0, nil
	}
	err = a.ns.Do(func() error {
		flows, err := openConnections()
		size = 2*len(flows) + 1024
		return err
	})
	return size, err
}

// grandfather runs after the programs are attached: a connection is either listed here, or its SYN met capture.
func (a *attachment) grandfather(maps *podMaps) error {
	if !a.cfg.Grandfather {
		return nil
	}
	return a.ns.Do(func() error {
		flows, err := openConnections()
		if err != nil {
			return err
		}
		return grandfather(maps.Grandfathered, flows)
	})
}
