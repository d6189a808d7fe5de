// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/sluice-mesh/sluice/internal/netns"
)

// Check compares the system with what AttachPod and SetListener left: every link attached to this namespace and its
// interfaces, rules, routes and sysctl in place, every slot filled (those of IPv6 only if the pod has it).
//
// All mismatches are named, joined.
func (p *Pod) Check() error {
	errs := []error{p.checkNetns(), p.checkSlots()}
	for _, i := range p.info.HostIfindexes {
		errs = append(errs, p.checkLink(guardPin(i), uint64(i)))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("pod %q: %w", p.info.ID, err)
	}
	return nil
}

func (p *Pod) checkNetns() error {
	ns, err := netns.Open(p.info.NetnsPath)
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	return ns.Do(func() error {
		cookie, err := currentNetnsCookie()
		if err != nil {
			return err
		}
		if cookie != p.info.NetnsCookie {
			return fmt.Errorf("netns %q is not the one that was attached", p.info.NetnsPath)
		}
		errs := []error{
			p.checkLink(dispatchLink, p.info.NetnsInode),
			p.checkLink(localLink, uint64(loopbackIfindex)),
			checkSteering(p.info.IPv6),
		}
		for _, c := range p.info.Captured {
			errs = append(errs, p.checkCapture(c))
		}
		for _, name := range p.info.Interfaces {
			errs = append(errs, p.checkName(name))
		}
		return errors.Join(errs...)
	})
}

func (p *Pod) checkCapture(c Capture) error {
	err := p.checkLink(capturePin(c.Ifindex), uint64(c.Ifindex))
	if err == nil {
		err = p.checkMaps(capturePin(c.Ifindex))
	}
	if err != nil {
		return fmt.Errorf("interface %q: %w", c.Name, err)
	}
	return nil
}

// checkName looks for a device that took the name of one with capture. That one keeps it; the other has none yet.
func (p *Pod) checkName(name string) error {
	i, err := ifindexOf(name)
	if err != nil || slices.Contains(p.info.ifindexes(), i) {
		return nil // renamed or gone: checkCapture tells which
	}
	return fmt.Errorf("interface %q: is another device now, number %d, which has no capture", name, i)
}

func (p *Pod) checkLink(pin string, want uint64) error {
	pinned, err := loadPin(filepath.Join(p.dir, pin))
	if err != nil {
		return fmt.Errorf("link %s: %w", pin, err)
	}
	defer func() { _ = pinned.Close() }()
	mode := AttachTCX
	if prog, ok := pinned.(*ebpf.Program); ok {
		mode = AttachClsact
		err = p.checkFilter(pin, prog)
	} else {
		err = checkTarget(pinned.(link.Link), want)
	}
	if err == nil && mode != p.node.mode && pin != dispatchLink {
		err = fmt.Errorf("is attached by %s, the node's mode is %s: attach the pod again", mode, p.node.mode)
	}
	if err != nil {
		return fmt.Errorf("link %s: %w", pin, err)
	}
	return nil
}

func checkTarget(l link.Link, want uint64) error {
	got, err := targetOf(l)
	if err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("attached to %d, want %d (0 means detached)", got, want)
	}
	return nil
}

// checkFilter compares the filter that is there with the one that we set. There is no link that would keep it.
func (p *Pod) checkFilter(pin string, prog *ebpf.Program) error {
	h, err := p.info.hookOf(pin)
	if err != nil {
		return err
	}
	live, err := h.liveProgram()
	if err != nil {
		return err
	}
	info, err := prog.Info()
	if err != nil {
		return err
	}
	want, _ := info.ID()
	switch live {
	case want:
		return nil
	case 0:
		return fmt.Errorf("detached: interface %d has no filter %s of priority %d and handle %#x",
			h.ifindex, h.filter, FilterPriority, FilterHandle)
	}
	return fmt.Errorf("filter %s of interface %d runs program %d, want %d", h.filter, h.ifindex, live, want)
}
func (p *Pod) checkSlots() error {
	var errs []error
	slots := Slots()
	if p.info.CaptureDNS {
		slots = append(slots, DNSSlots()...)
	}
	for _, s := range slots {
		if s.IsIPv6() && !p.info.IPv6 {
			continue
		}
		_, ok, err := p.ListenerCookie(s)
		if err == nil && !ok {
			err = fmt.Errorf("slot %v is empty", s)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
