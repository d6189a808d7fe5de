// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/sluice-mesh/sluice/internal/netns"
)

// addMissingMaps gives an attached pod the maps that the release which attached it did not have. A pod that this
// release cannot read is left as it is.
func addMissingMaps(dir string) error {
	if _, err := readInfoPin(filepath.Join(dir, infoMap)); err != nil {
		return nil // whoever opens the pod next says why
	}
	specs, err := podMapSpecs(1)
	if err != nil {
		return err
	}
	var maps podMaps
	for name := range maps.byName() {
		if exists(filepath.Join(dir, name)) {
			continue
		}
		m, err := createPinned(filepath.Join(dir, name), specs[name])
		if err != nil {
			return fmt.Errorf("create map %q: %w", name, err)
		}
		_ = m.Close()
	}
	return nil
}

// migrateMaps gives p maps of this release's shape where an older one's differ, with what was in them. They are pinned
// beside the old ones until commitMaps, which is to be called when the programs use them.
func (a *attachment) migrateMaps(p *Pod) (names []string, err error) {
	specs, err := podMapSpecs(int(p.maps.Grandfathered.MaxEntries()))
	if err != nil {
		return nil, err
	}
	for name, m := range p.maps.byName() {
		if specs[name].Compatible(*m) == nil {
			continue
		}
		if name == dispatchMapListeners {
			if err := a.hasAllListeners(p); err != nil {
				return nil, err
			}
		}
		now, err := pinNew(filepath.Join(p.dir, name+newSuffix), specs[name])
		if err == nil && name != dispatchMapListeners { // sockets cannot be read out: the caller gives them anew
			err = copyEntries(now, *m)
		}
		if err != nil {
			return nil, fmt.Errorf("migrate map %q: %w", name, err)
		}
		_ = (*m).Close()
		*m = now
		names = append(names, name)
	}
	return names, nil
}

// hasAllListeners keeps a pod from losing listeners: what is in the old map must be given for the new one.
func (a *attachment) hasAllListeners(p *Pod) error {
	for _, s := range append(Slots(), DNSSlots()...) {
		if uint32(s) >= p.maps.Listeners.MaxEntries() {
			continue
		}
		_, filled, err := p.ListenerCookie(s)
		if err != nil {
			return err
		}
		if _, given := a.cfg.Listeners[s]; filled && !given {
			return fmt.Errorf("map %q has another shape in this release: attach with the listener of slot %v", dispatchMapListeners, s)
		}
	}
	return nil
}

func commitMaps(dir string, names []string) error {
	for _, name := range names {
		path := filepath.Join(dir, name)
		if err := os.Rename(path+newSuffix, path); err != nil {
			return fmt.Errorf("migrate map %q: %w", name, err)
		}
		fault("migrated " + name)
	}
	return nil
}

// reload replaces the programs of all pods in place, over n's maps. Those that it cannot replace go on with what they
// had, and Check says so.
func (n *Node) reload() error {
	ids, err := n.ids(podsDir)
	if err != nil {
		return err
	}
	var errs []error
	for _, id := range ids {
		if err := n.reloadPod(id); err != nil {
			errs = append(errs, fmt.Errorf("reload pod %q: %w", id, err))
		}
	}
	return errors.Join(errs...)
}

func (n *Node) reloadPod(id string) error {
	info, err := readInfoPin(filepath.Join(n.root, podsDir, id, infoMap))
	if err != nil {
		return err
	}
	s, err := siteOf(&info)
	if err != nil || s.ns == nil {
		return err // gone: for Collect
	}
	defer s.close()
	lock, err := n.lockPod(id, true)
	if err != nil {
		return err
	}
	defer lock.release()
	return n.reloadLocked(id, s.ns, lock)
}

func (n *Node) reloadLocked(id string, ns *netns.NS, lock *podLock) error {
	dir := filepath.Join(n.root, podsDir, id)
	if err := addMissingMaps(dir); err != nil {
		return err
	}
	p, err := n.openPod(dir)
	if err != nil {
		return err
	}
	defer func() { _ = p.Close() }()
	a := &attachment{node: n, cfg: p.info.config(), info: p.info, ns: ns, lock: lock}
	return a.replace(p)
}

// checkMaps looks whether capture asks the node's set of destinations, or that of a release before.
func (p *Pod) checkMaps(pin string) error {
	prog, err := pinnedProgram(filepath.Join(p.dir, pin))
	if err != nil {
		return fmt.Errorf("link %s: %w", pin, err)
	}
	defer func() { _ = prog.Close() }()
	info, err := prog.Info()
	if err != nil {
		return err
	}
	used, ok := info.MapIDs()
	if !ok {
		return nil
	}
	set, err := p.node.maps.Destinations.Info()
	if err != nil {
		return err
	}
	if id, ok := set.ID(); ok && !slices.Contains(used, id) {
		return errors.New("captures by the maps of an earlier release: attach the pod again")
	}
	return nil
}
