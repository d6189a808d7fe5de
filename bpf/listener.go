// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// SetListener puts a listening socket into a slot, in place of the one there; connections change over without a gap.
//
// The socket must be plain TCP (not MPTCP), or UDP where the slot says so, of the slot's family and of the pod's network
// namespace, and transparent for a slot of what capture bounces: otherwise connections would be lost silently. The caller keeps fd; the slot empties when the
// last descriptor of the socket is closed.
func (p *Pod) SetListener(s Slot, fd int) error {
	if err := p.checkListener(s, fd); err != nil {
		return fmt.Errorf("pod %q: slot %v: %w", p.info.ID, s, err)
	}
	if err := p.maps.Listeners.Put(uint32(s), uint64(fd)); err != nil {
		return fmt.Errorf("pod %q: slot %v: %w", p.info.ID, s, err)
	}
	return nil
}

// ClearListener empties a slot: its connections are refused from now on. Clearing again is no error.
func (p *Pod) ClearListener(s Slot) error {
	err := p.maps.Listeners.Delete(uint32(s))
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("pod %q: clear slot %v: %w", p.info.ID, s, err)
	}
	return nil
}

// ListenerCookie returns the kernel's cookie of the socket in a slot, as SO_COOKIE gives it; ok is false if the slot
// is empty.
func (p *Pod) ListenerCookie(s Slot) (cookie uint64, ok bool, err error) {
	err = p.maps.Listeners.Lookup(uint32(s), &cookie)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("pod %q: read slot %v: %w", p.info.ID, s, err)
	}
	return cookie, true, nil
}

// checkListener refuses what the kernel takes without a word and then loses connections with.
func (p *Pod) checkListener(s Slot, fd int) error {
	type option struct {
		name       string
		level, opt int
		want       int
	}
	options := []option{{"family is not the slot's but", unix.SOL_SOCKET, unix.SO_DOMAIN, s.family()}}
	if s.IsUDP() {
		options = append(options, option{"protocol is not UDP but", unix.SOL_SOCKET, unix.SO_PROTOCOL, unix.IPPROTO_UDP})
	} else {
		options = append(options,
			option{"protocol is not plain TCP but", unix.SOL_SOCKET, unix.SO_PROTOCOL, unix.IPPROTO_TCP},
			option{"not listening: accepting", unix.SOL_SOCKET, unix.SO_ACCEPTCONN, 1})
	}
	switch {
	case !s.isBounced():
	case s.IsIPv6():
		options = append(options, option{"not transparent: IPV6_TRANSPARENT", unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1})
	default:
		options = append(options, option{"not transparent: IP_TRANSPARENT", unix.SOL_IP, unix.IP_TRANSPARENT, 1})
	}
	for _, o := range options {
		got, err := unix.GetsockoptInt(fd, o.level, o.opt)
		if err != nil {
			return fmt.Errorf("inspect socket: %w", err)
		}
		if got != o.want {
			return fmt.Errorf("%s %d", o.name, got)
		}
	}
	cookie, err := netnsCookie(fd)
	if err != nil {
		return err
	}
	if cookie != p.info.NetnsCookie {
		return errors.New("the socket is of another network namespace")
	}
	return nil
}
