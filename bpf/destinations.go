// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
)

// Destinations is the node's set of addresses whose connections are captured. Until it is complete, all are.
//
// Its use by one writer and any number of readers is safe; it outlives the writer.
type Destinations struct {
	set, complete *ebpf.Map
	dir           string // of the pins
	owned         bool   // the maps are not a Node's
}

// Destinations returns the set of n. It is valid until n is closed.
func (n *Node) Destinations() *Destinations {
	return &Destinations{set: n.maps.Destinations, complete: n.maps.Complete, dir: filepath.Join(n.root, nodeDir)}
}

// OpenDestinations returns the set that is pinned below root, of whatever size: unlike [OpenNode] it also opens what an
// agent of another release made. It wraps [ErrNotLoaded] if there is none, or while an agent replaces it. The caller
// closes the set.
func OpenDestinations(root string) (*Destinations, error) {
	d, err := openDestinations(root)
	if err != nil {
		return nil, fmt.Errorf("open destinations below %q: %w", root, err)
	}
	return d, nil
}

func openDestinations(root string) (_ *Destinations, err error) {
	if _, err := readSettings(root); err != nil {
		return nil, err
	}
	spec, err := captureSpec()
	if err != nil {
		return nil, err
	}
	d := &Destinations{dir: filepath.Join(root, nodeDir), owned: true}
	for name, m := range d.byName() {
		if *m, err = openResized(filepath.Join(d.dir, name), spec.Maps[name]); err != nil {
			return nil, errors.Join(fmt.Errorf("map %q: %w", name, err), d.Close())
		}
	}
	// An agent that replaces maps first takes away the pin of complete: while it stays, the two belong together.
	current, err := d.IsCurrent()
	if err == nil && !current {
		err = fmt.Errorf("%w: its maps are being replaced", ErrNotLoaded)
	}
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// byName's keys are the names of the pins.
func (d *Destinations) byName() map[string]**ebpf.Map {
	return map[string]**ebpf.Map{captureMapDestinations: &d.set, captureMapComplete: &d.complete}
}

// Close lets go of what OpenDestinations opened. The set of a Node is closed with that.
func (d *Destinations) Close() error {
	if !d.owned {
		return nil
	}
	return errors.Join(d.set.Close(), d.complete.Close()) // of nil too
}

// IsCurrent tells whether d is what is pinned. It is not once an agent has given the node's maps successors: programs
// that it attaches read those, and d must be opened again.
func (d *Destinations) IsCurrent() (bool, error) {
	for name, m := range d.byName() {
		same, err := isPinnedAt(filepath.Join(d.dir, name), *m)
		if err != nil || !same {
			return false, err
		}
	}
	return true, nil
}

func isPinnedAt(path string, m *ebpf.Map) (bool, error) {
	pinned, err := ebpf.LoadPinnedMap(path, nil)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("pin %q: %w", path, err)
	}
	defer func() { _ = pinned.Close() }()
	there, err := mapID(pinned)
	if err != nil {
		return false, fmt.Errorf("pin %q: %w", path, err)
	}
	ours, err := mapID(m)
	return there == ours, err
}

func mapID(m *ebpf.Map) (ebpf.MapID, error) {
	info, err := m.Info()
	if err != nil {
		return 0, err
	}
	id, ok := info.ID()
	if !ok {
		return 0, errors.New("the kernel does not tell the id of a map")
	}
	return id, nil
}

// Add puts addresses into the set. IPv4 and IPv4-mapped IPv6 addresses are the same. If one does not fit, the set is
// marked incomplete, so that its connections are captured all the same, and an error is returned.
func (d *Destinations) Add(addrs ...netip.Addr) error {
	values := make([]uint8, min(len(addrs), batchSize))
	for i := range values {
		values[i] = 1
	}
	for chunk := range slices.Chunk(addrs, batchSize) {
		keys := keysOf(chunk)
		done, err := d.set.BatchUpdate(keys, values[:len(keys)], nil)
		if err != nil {
			return errors.Join(fmt.Errorf("add destination %v: %w", chunk[min(done, len(chunk)-1)], err), d.SetComplete(false))
		}
	}
	return nil
}

// batchSize is how many entries one system call reads or writes (Linux 5.6).
const batchSize = 4096

func keysOf(addrs []netip.Addr) [][16]byte {
	keys := make([][16]byte, len(addrs))
	for i, a := range addrs {
		keys[i] = a.As16()
	}
	return keys
}

// Remove takes addresses out of the set. Addresses that are not in it are no error.
func (d *Destinations) Remove(addrs ...netip.Addr) error {
	var errs []error
	for _, addr := range addrs {
		if err := d.set.Delete(addr.As16()); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, fmt.Errorf("remove destination %v: %w", addr, err))
		}
	}
	return errors.Join(errs...)
}

// SetComplete says whether the set holds every address that it should. Only then do connections to others pass, and
// only then does guard act.
func (d *Destinations) SetComplete(complete bool) error {
	var value uint32
	if complete {
		value = 1
	}
	if err := d.complete.Put(uint32(0), value); err != nil {
		return fmt.Errorf("set destinations complete: %w", err)
	}
	return nil
}

// Complete tells what SetComplete was last called with, by any process since the maps were loaded.
func (d *Destinations) Complete() (bool, error) {
	var value uint32
	if err := d.complete.Lookup(uint32(0), &value); err != nil {
		return false, fmt.Errorf("read destinations complete: %w", err)
	}
	return value != 0, nil
}

// Contains tells whether an address is in the set.
func (d *Destinations) Contains(addr netip.Addr) (bool, error) {
	var value uint8
	err := d.set.Lookup(addr.As16(), &value)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look up destination %v: %w", addr, err)
	}
	return true, nil
}

// List returns the set, sorted, IPv4 addresses as such. While another process changes it some may be missing.
func (d *Destinations) List() ([]netip.Addr, error) {
	var addrs []netip.Addr
	var cursor ebpf.MapBatchCursor
	keys, values := make([][16]byte, batchSize), make([]uint8, batchSize)
	for {
		n, err := d.set.BatchLookup(&cursor, keys, values, nil)
		for _, key := range keys[:n] {
			addrs = append(addrs, netip.AddrFrom16(key).Unmap())
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) { // the end
			break
		}
		if err != nil {
			return nil, fmt.Errorf("list destinations: %w", err)
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return addrs, nil
}
