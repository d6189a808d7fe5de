// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// migrateNode gives the node's maps whose shape an older release made successors of this release's shape, with what was
// in them, and tells whether there were any.
//
// Until the programs of a pod use the successors, they capture every destination: the old set is marked incomplete. So
// is the new one, as whoever filled the old does not know it. The shape of socket_tags is frozen: ztunnel's tag cannot
// be read off all sockets, and without it ztunnel's own connections would be captured.
func migrateNode(root string, specs map[string]*ebpf.MapSpec) (migrated bool, err error) {
	dir := filepath.Join(root, nodeDir)
	var maps nodeMaps
	var outdated []string
	for name := range maps.byName() {
		old, err := isOutdated(filepath.Join(dir, name), specs[name])
		if err != nil {
			return false, fmt.Errorf("map %q: %w", name, err)
		}
		if old && name == captureMapSocketTags {
			return false, fmt.Errorf("map %q: %w: its shape never changes: run the release that made it, or recreate all pods of the node",
				name, ebpf.ErrMapIncompatible)
		}
		if old {
			outdated = append(outdated, name)
		}
	}
	if len(outdated) == 0 {
		return false, nil
	}
	if err := startAnew(filepath.Join(dir, captureMapComplete)); err != nil {
		return false, err
	}
	for _, name := range outdated {
		if name == captureMapComplete {
			continue
		}
		if err := succeed(filepath.Join(dir, name), specs[name]); err != nil {
			return false, fmt.Errorf("migrate map %q: %w", name, err)
		}
		fault("migrated " + name)
	}
	return true, nil
}

func isOutdated(path string, spec *ebpf.MapSpec) (bool, error) {
	m, err := ebpf.LoadPinnedMap(path, nil)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer func() { _ = m.Close() }()
	return spec.Compatible(m) != nil, nil
}

// startAnew says of the set of destinations that it is incomplete, in the map that old programs read, and takes that
// map's pin away: LoadNode makes a new one last of all. Until then nobody who fills the set can open it, so nobody calls
// the new set complete for having filled the old.
func startAnew(path string) error {
	old, err := ebpf.LoadPinnedMap(path, nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = old.Put(uint32(0), make([]byte, old.ValueSize()))
		_ = old.Close()
	}
	if err == nil {
		err = os.Remove(path)
	}
	if err != nil {
		return fmt.Errorf("set destinations incomplete: %w", err)
	}
	return nil
}

// succeed puts a map of spec's shape in the place of a pinned one, with its entries.
func succeed(path string, spec *ebpf.MapSpec) error {
	old, err := ebpf.LoadPinnedMap(path, nil)
	if err != nil {
		return err
	}
	defer func() { _ = old.Close() }()
	return replacePin(path, spec, func(m *ebpf.Map) error { return copyEntries(m, old) })
}

// replacePin pins a new map in the place of another once it is filled. The rename is the commit point.
func replacePin(path string, spec *ebpf.MapSpec, fill func(*ebpf.Map) error) error {
	m, err := pinNew(path+newSuffix, spec)
	if err != nil {
		return err
	}
	defer func() { _ = m.Close() }()
	if err := fill(m); err != nil {
		return errors.Join(err, os.Remove(path+newSuffix))
	}
	return os.Rename(path+newSuffix, path)
}

// pinNew creates and pins a map in the place of what a process left that died half-way.
func pinNew(path string, spec *ebpf.MapSpec) (*ebpf.Map, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	m, err := ebpf.NewMap(spec)
	if err != nil {
		return nil, err
	}
	if err := m.Pin(path); err != nil {
		_ = m.Close()
		return nil, err
	}
	return m, nil
}

// copyEntries copies what has the same meaning in both: keys and values of the same size. Of other maps nothing is
// copied: they begin empty, which captures and never exempts.
func copyEntries(to, from *ebpf.Map) error {
	if to.Type() != from.Type() || to.KeySize() != from.KeySize() || to.ValueSize() != from.ValueSize() {
		return nil
	}
	iter := from.Iterate()
	if isPerCPU(from.Type()) {
		var key []byte
		var values [][]byte
		for iter.Next(&key, &values) {
			if err := to.Put(key, values); err != nil && !isFull(err) {
				return err
			}
		}
		return iter.Err()
	}
	var key, value []byte
	for iter.Next(&key, &value) {
		if err := to.Put(key, value); err != nil && !isFull(err) {
			return err
		}
	}
	return iter.Err()
}

// isFull is what a smaller successor says of entries beyond its size.
func isFull(err error) bool {
	return errors.Is(err, unix.E2BIG)
}

func isPerCPU(t ebpf.MapType) bool {
	return t == ebpf.PerCPUArray || t == ebpf.PerCPUHash || t == ebpf.LRUCPUHash
}
