// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf/link"

	"github.com/sluice-mesh/sluice/internal/netns"
)

// takeDown takes apart a pod's folder, finished or half-made. A folder that is not there is no error.
func takeDown(dir string) error {
	pins, err := linkPins(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	info, err := readInfoPin(filepath.Join(dir, infoMap))
	readable := err == nil
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, errForeignInfo) {
		errs = append(errs, err) // without it, rules and routes would stay for good
	}
	s, err := siteOf(&info)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	defer s.close()
	if target, err := linkTarget(filepath.Join(dir, dispatchLink)); err == nil && target == 0 {
		s.severed = true
	}
	// Last: while dispatch is there, what was bounced finds its listener.
	if i := slices.Index(pins, dispatchLink); i >= 0 {
		pins = append(slices.Delete(pins, i, i+1), dispatchLink)
	}
	for _, pin := range pins {
		if pin == dispatchLink && len(errs) > 0 {
			break
		}
		if err := s.detach(dir, pin); err != nil {
			errs = append(errs, err)
		}
		fault("detached " + pin)
	}
	if readable {
		errs = append(errs, s.unsteer())
		fault("unsteered")
	}
	if err := errors.Join(errs...); err != nil {
		return err // the record stays, for the next try
	}
	return removeFolder(dir)
}

// removeFolder removes the record last: without it nobody could go on.
func removeFolder(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == infoMap {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
		fault("removed " + e.Name())
	}
	return os.RemoveAll(dir)
}

// site is where a pod's programs are attached: in its namespace, and for guard in the calling thread's.
type site struct {
	info *PodInfo
	ns   *netns.NS // nil if the pod's namespace is gone, or unknown
	// severed says that the kernel has detached dispatch, with the namespace or told to.
	severed bool
}

// siteOf looks for the namespace of a pod. The caller closes the site.
func siteOf(info *PodInfo) (*site, error) {
	s := &site{info: info}
	if info.NetnsPath == "" {
		return s, nil
	}
	ns, err := netns.Open(info.NetnsPath)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, netns.ErrNotNetns) {
		return s, nil // gone, and rules, routes and filters with it
	}
	if err != nil {
		return nil, err
	}
	var cookie uint64
	err = ns.Do(func() (err error) {
		cookie, err = currentNetnsCookie()
		return err
	})
	if err != nil || cookie != info.NetnsCookie {
		_ = ns.Close()
		return s, err
	}
	s.ns = ns
	return s, nil
}

func (s *site) close() {
	if s.ns != nil {
		_ = s.ns.Close()
	}
}

// detach detaches what a pin in dir stands for, now, whoever else holds it, and removes the pin.
func (s *site) detach(dir, pin string) error {
	path := filepath.Join(dir, pin)
	p, err := loadPin(path)
	if err != nil {
		return fmt.Errorf("open link: %w", err)
	}
	defer func() { _ = p.Close() }()
	if l, ok := p.(link.Link); ok {
		err = dropLink(l, path)
	} else {
		err = s.deleteFilter(pin)
	}
	if err != nil {
		return fmt.Errorf("detach %s: %w", pin, err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("unpin %s: %w", pin, err)
	}
	return nil
}

func (s *site) deleteFilter(pin string) error {
	if s.info.NetnsCookie == 0 && s.severed {
		return nil
	}
	if s.info.NetnsCookie == 0 {
		return errors.New("no record says where its filter is: delete the pod, and then this")
	}
	h, err := s.info.hookOf(pin)
	if err != nil {
		return err
	}
	if !isGuardPin(pin) {
		if s.ns == nil {
			return nil
		}
		return s.ns.Do(h.deleteFilter)
	}
	cookie, err := currentNetnsCookie()
	if err != nil {
		return err
	}
	if cookie == s.info.HostCookie {
		return h.deleteFilter()
	}
	if s.ns == nil {
		return nil // the host's end went with the pod
	}
	return errors.New("the host's end is in another network namespace: call from there")
}

func (s *site) detachIfPinned(dir, pin string) error {
	if err := s.detach(dir, pin); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// unsteer undoes steer if the pod's namespace is there.
func (s *site) unsteer() error {
	if s.ns == nil {
		return nil
	}
	return s.ns.Do(func() error { return unsteer(s.info.LoopbackWasOpen) })
}
