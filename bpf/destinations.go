// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
)

// Destinations is the node's set of addresses whose connections are captured. Until it is complete, all are.
//
// Its use by one writer and any number of readers is safe; it outlives the writer.
type Destinations struct {
	set, complete *ebpf.Map
}

// Destinations returns the set of n. It is valid until n is closed.
func (n *Node) Destinations() *Destinations {
	return &Destinations{set: n.maps.Destinations, complete: n.maps.Complete}
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
