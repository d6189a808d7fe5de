// SPDX-License-Identifier: Apache-2.0

// Package listeners makes, holds and hands over the sockets at which a pod's captured connections arrive.
//
// The agent holds every listener beside ztunnel, so a connection made while no ztunnel runs waits in the accept queue
// for the next one:
//
//	agent    Set ── fd ──┐
//	                     ├──► listening socket in the pod ◄── slot of the pod's `listeners` map
//	ztunnel ─────── fd ──┘
//
// The socket, and with it the slot's content, lives as long as either has it open.
package listeners

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/internal/netns"
)

// Slots is a pod's `listeners` map; *bpf.Pod is one.
type Slots interface {
	SetListener(s bpf.Slot, fd int) error
	// ListenerCookie returns ok false if the slot is empty.
	ListenerCookie(s bpf.Slot) (cookie uint64, ok bool, err error)
}

// ErrClosed reports the use of a Set after Close.
var ErrClosed = errors.New("listeners are closed")

// Set is the listeners of one pod that this process holds. The zero value holds none. Safe for concurrent use.
type Set struct {
	mu     sync.Mutex
	fds    map[bpf.Slot]int
	dns    bool
	closed bool
}

// Names of the slots that get a listener, in a fixed order; dns adds those of a pod whose queries are captured.
func Names(dns bool) []bpf.Slot {
	if dns {
		return append(bpf.Slots(), bpf.DNSSlots()...)
	}
	return bpf.Slots()
}

// CaptureDNS says whether the set is to have the sockets of queries too. Those that it is not to have any more it lets
// go; whoever asks for the set's listeners next gets none.
func (s *Set) CaptureDNS(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dns = on
	for slot, fd := range s.fds {
		if !slices.Contains(Names(on), slot) {
			_ = unix.Close(fd)
			delete(s.fds, slot)
		}
	}
}

// CapturesDNS is what CaptureDNS said last.
func (s *Set) CapturesDNS() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dns
}

// Open makes a listener in ns for every slot that s is to have and does not hold one for, each tagged by tag before it is bound.
// A family that ns does not have is left out. On error s is as before.
func (s *Set) Open(ns *netns.NS, tag func(fd int) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.openLocked(ns, tag, Names(s.dns))
}

func (s *Set) openLocked(ns *netns.NS, tag func(fd int) error, slots []bpf.Slot) error {
	if s.closed {
		return ErrClosed
	}
	made := map[bpf.Slot]int{}
	err := ns.Do(func() error {
		for _, slot := range slots {
			if _, held := s.fds[slot]; held {
				continue
			}
			fd, err := listen(slot, tag)
			if errors.Is(err, errNoFamily) {
				continue
			}
			if err != nil {
				return fmt.Errorf("make listener %s: %w", slot, err)
			}
			made[slot] = fd
		}
		return nil
	})
	if err != nil {
		for _, fd := range made {
			_ = unix.Close(fd)
		}
		return err
	}
	if s.fds == nil {
		s.fds = map[bpf.Slot]int{}
	}
	for slot, fd := range made {
		s.fds[slot] = fd
	}
	return nil
}

// Install puts each held listener that is not there yet into its slot.
func (s *Set) Install(slots Slots) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.installLocked(slots)
}

func (s *Set) installLocked(slots Slots) error {
	var errs []error
	for slot, fd := range s.fds {
		if err := install(slots, slot, fd); err != nil {
			errs = append(errs, fmt.Errorf("fill slot %s: %w", slot, err))
		}
	}
	return errors.Join(errs...)
}

func install(slots Slots, slot bpf.Slot, fd int) error {
	want, err := cookieOf(fd)
	if err != nil {
		return err
	}
	if got, ok, err := slots.ListenerCookie(slot); err == nil && ok && got == want {
		return nil
	}
	return slots.SetListener(slot, fd)
}

// Repair fills the slots that are empty and puts held listeners back where they belong. A slot whose socket somebody
// else still holds, a ztunnel that outlived this agent's predecessor, is left to Adopt.
func (s *Set) Repair(ns *netns.NS, tag func(fd int) error, slots Slots) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var empty []bpf.Slot
	for _, slot := range Names(s.dns) {
		_, ok, err := slots.ListenerCookie(slot)
		if err != nil {
			return fmt.Errorf("read slot %s: %w", slot, err)
		}
		if !ok {
			empty = append(empty, slot)
		}
	}
	if err := s.openLocked(ns, tag, empty); err != nil {
		return err
	}
	return s.installLocked(slots)
}

// Adopt takes the offered descriptors that are the very sockets in their slots and are not held yet. It duplicates what
// it takes; all of offered stays the caller's.
func (s *Set) Adopt(slots Slots, offered map[bpf.Slot]int) (adopted []bpf.Slot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for slot, fd := range offered {
		if _, held := s.fds[slot]; held || s.closed || !slices.Contains(Names(s.dns), slot) {
			continue
		}
		want, ok, err := slots.ListenerCookie(slot)
		if err != nil || !ok {
			continue
		}
		if got, err := cookieOf(fd); err != nil || got != want {
			continue
		}
		own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			continue
		}
		if s.fds == nil {
			s.fds = map[bpf.Slot]int{}
		}
		s.fds[slot] = own
		adopted = append(adopted, slot)
	}
	slices.Sort(adopted)
	return adopted
}

// Duplicate returns descriptors of all held listeners, the caller's to close.
func (s *Set) Duplicate() (slots []bpf.Slot, fds []int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, slot := range s.heldLocked() {
		fd, err := unix.FcntlInt(uintptr(s.fds[slot]), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			for _, fd := range fds {
				_ = unix.Close(fd)
			}
			return nil, nil, fmt.Errorf("duplicate listener %s: %w", slot, err)
		}
		slots, fds = append(slots, slot), append(fds, fd)
	}
	return slots, fds, nil
}

// Use calls fn with the held descriptors, which stay open until it returns. fn must not call s.
func (s *Set) Use(fn func(fds map[bpf.Slot]int) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fn(s.fds)
}

// Held lists the slots whose listener this set holds.
func (s *Set) Held() []bpf.Slot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.heldLocked()
}

func (s *Set) heldLocked() []bpf.Slot {
	held := make([]bpf.Slot, 0, len(s.fds))
	for slot := range s.fds {
		held = append(held, slot)
	}
	slices.Sort(held)
	return held
}

// LetGo closes all listeners. Where no ztunnel holds a listener too it is gone then, the connections waiting in it are
// reset, and its slot is empty. The set may be filled again.
//
// It does nothing if needed says that somebody is there to ask for the listeners: nobody is handed one between the two.
func (s *Set) LetGo(needed func() bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !needed() {
		s.letGoLocked()
	}
}

// Close lets go for good: what tries to fill the set later gets [ErrClosed].
func (s *Set) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.letGoLocked()
}

func (s *Set) letGoLocked() {
	for _, fd := range s.fds {
		_ = unix.Close(fd)
	}
	s.fds = nil
}
