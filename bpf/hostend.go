// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// hostEndPrefix begins the pins of the fallback of probe, below node/: hostend_COOKIE_IFINDEX, in hexadecimal digits. The
// cookie keeps a pod from taking down what is another's that has the same interface number by now.
const hostEndPrefix = "hostend_"

func hostEndPod(cookie uint64) string { return fmt.Sprintf("%s%x_", hostEndPrefix, cookie) }

// syncHostEnds gives the host's ends of a pod's links the program, or takes it away. The interfaces are those of the
// calling thread's network namespace. The caller holds the host's lock.
func (n *Node) syncHostEnds(info *PodInfo, wanted bool) error {
	if !wanted || len(info.HostIfindexes) == 0 {
		return n.dropHostEnds(hostEndPod(info.NetnsCookie))
	}
	prog, err := n.loadHostEnd()
	if err != nil {
		return err
	}
	defer func() { _ = prog.Close() }()
	keep := map[string]bool{}
	var errs []error
	for _, i := range info.HostIfindexes {
		name := fmt.Sprintf("%s%x", hostEndPod(info.NetnsCookie), i)
		err := n.putHostEnd(name, prog)
		keep[name] = !errors.Is(err, unix.ENODEV) // one whose device is gone needs none
		if err != nil && keep[name] {
			errs = append(errs, fmt.Errorf("host's end %d: %w", i, err))
		}
	}
	return errors.Join(append(errs, n.dropHostEndsBut(hostEndPod(info.NetnsCookie), keep))...)
}

func (n *Node) loadHostEnd() (*ebpf.Program, error) {
	spec, err := hostendSpec()
	if err != nil {
		return nil, err
	}
	shared := map[string]*ebpf.Map{captureMapProbeFlows: n.maps.ProbeFlows}
	coll, err := ebpf.NewCollectionWithOptions(spec.Copy(), ebpf.CollectionOptions{MapReplacements: shared})
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", hostendProgHostend, err)
	}
	defer coll.Close()
	return coll.DetachProgram(hostendProgHostend), nil
}

// hostEndHook tells from the name of a pin where its program belongs.
func hostEndHook(name string) (h hook, err error) {
	var cookie uint64
	if _, err := fmt.Sscanf(name, hostEndPrefix+"%x_%x", &cookie, &h.ifindex); err != nil {
		return hook{}, fmt.Errorf("pin %q: not ours: %w", name, err)
	}
	h.attach, h.filter = ebpf.AttachTCXEgress, fmt.Sprintf("sluice_hostend_%x", cookie)
	return h, nil
}

func (n *Node) putHostEnd(name string, prog *ebpf.Program) error {
	h, err := hostEndHook(name)
	if err != nil {
		return err
	}
	if n.mode == AttachClsact {
		if err := n.dropHostEnd(name); err != nil {
			return err
		}
		// Pinned first, so that whoever takes it away looks for the filter.
		if err := prog.Pin(n.hostPin(name)); err != nil {
			return err
		}
		return h.setFilter(prog)
	}
	old, err := link.LoadPinnedLink(n.hostPin(name), nil)
	if err == nil {
		defer func() { _ = old.Close() }()
		if target, err := targetOf(old); err == nil && target != 0 {
			return old.Update(prog)
		}
	}
	if err := n.dropHostEnd(name); err != nil { // its interface is gone, or it is of the other mode
		return err
	}
	l, err := link.AttachTCX(link.TCXOptions{Interface: h.ifindex, Program: prog, Attach: h.attach, Anchor: link.Head()})
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	return l.Pin(n.hostPin(name))
}

func (n *Node) dropHostEnd(name string) error {
	h, err := hostEndHook(name)
	if err != nil {
		return err
	}
	old, err := loadPin(n.hostPin(name))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = old.Close() }()
	if _, ok := old.(link.Link); ok {
		return dropHostLink(n.hostPin(name))
	}
	if err := h.deleteFilter(); err != nil {
		return err
	}
	return os.Remove(n.hostPin(name))
}

// dropHostEnds takes the program off everywhere, of all pods or of one, as the prefix says.
func (n *Node) dropHostEnds(prefix string) error { return n.dropHostEndsBut(prefix, nil) }

func (n *Node) dropHostEndsBut(prefix string, keep map[string]bool) error {
	entries, err := os.ReadDir(filepath.Join(n.root, nodeDir))
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) && !keep[e.Name()] {
			errs = append(errs, n.dropHostEnd(e.Name()))
		}
	}
	return errors.Join(errs...)
}

// hostEnds puts the fallback in the place of a probe that is ineffective, or takes it away.
func (a *hostAttachment) hostEnds() error {
	s := &a.status.Probe
	if !a.cfg.Probe || !a.ineffective {
		return a.node.dropHostEnds(hostEndPrefix)
	}
	why := s.Problem
	*s = HookStatus{Kind: HookHostEnd, Problem: why}
	errs := a.dropHook(s)
	pods, err := a.node.Pods()
	errs = append(errs, err)
	var bad []error
	for i := range pods {
		if err := a.node.syncHostEnds(&pods[i], true); err != nil {
			bad = append(bad, fmt.Errorf("pod %q: %w", pods[i].ID, err))
		}
	}
	// Some pods may have it: they trust.
	s.Attached, s.TrustsAll = true, true
	s.Problem = why + "; probes are told by the host's ends of the pods' links instead, those of pods without one are not"
	if len(bad) > 0 {
		s.Problem += fmt.Sprintf("; nor are those of %v", errors.Join(bad...))
	}
	return errors.Join(errs...)
}
