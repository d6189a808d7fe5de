// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
)

// ReleaseInterface takes capture and guard off the devices that were attached by this name, whatever the pod calls them
// now. It refuses the pod's only interface, which goes with [Node.DetachPod].
//
// A pod or a name that is not attached is no error. Guard's interfaces are those of the calling thread's namespace.
func (n *Node) ReleaseInterface(id, name string) error {
	if err := validID(id); err != nil {
		return fmt.Errorf("release interface: %w", err)
	}
	if err := n.releaseInterface(id, name); err != nil {
		return fmt.Errorf("release interface %q of pod %q: %w", name, id, err)
	}
	return nil
}

func (n *Node) releaseInterface(id, name string) error {
	if !n.hasTrace(id) {
		return nil
	}
	lock, err := n.lockPod(id, true)
	if err != nil {
		return err
	}
	defer lock.release()
	p, err := n.Pod(id)
	if errors.Is(err, ErrNotAttached) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = p.Close() }()
	s, err := siteOf(&p.info)
	if err != nil {
		return err
	}
	defer s.close()
	return p.release(s, name)
}

func (p *Pod) release(s *site, name string) error {
	if !slices.Contains(p.info.Interfaces, name) {
		return nil
	}
	before := p.info.ifindexes()
	p.info.Interfaces = slices.DeleteFunc(p.info.Interfaces, func(n string) bool { return n == name })
	p.info.Captured = slices.DeleteFunc(p.info.Captured, func(c Capture) bool { return c.Name == name })
	if len(p.info.Interfaces) == 0 {
		return errors.New("is the pod's only interface")
	}
	kept := p.info.ifindexes() // a device that has another name too stays
	released := slices.DeleteFunc(before, func(i int) bool { return slices.Contains(kept, i) })
	if err := p.releaseGuards(s, released); err != nil {
		return err
	}
	for _, i := range released {
		if err := s.detachIfPinned(p.dir, capturePin(i)); err != nil {
			return err
		}
	}
	// Last: until then Check misses the links, and attaching again repairs that.
	return writeInfo(p.maps.Info, &p.info)
}

// releaseGuards gives up the host's ends of the released devices, and those that are gone.
func (p *Pod) releaseGuards(s *site, released []int) error {
	var kept []int
	for _, i := range p.info.HostIfindexes {
		l, err := netlink.LinkByIndex(i)
		if err != nil && !errors.As(err, &netlink.LinkNotFoundError{}) {
			return fmt.Errorf("host's end %d: %w", i, err)
		}
		if err == nil && !slices.Contains(released, l.Attrs().ParentIndex) {
			kept = append(kept, i)
			continue
		}
		if err := s.detachIfPinned(p.dir, guardPin(i)); err != nil {
			return err
		}
	}
	p.info.HostIfindexes = kept
	return nil
}
