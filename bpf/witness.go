// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// witnesses are sockets of ours that programs leave a trace of. The kernel attaches a program to a cgroup also if no
// process of the node is in it, and before Linux 5.15 other owners' use of cgroup v1 could make it see nothing.
type witnesses struct{ cookies *ebpf.Map }

func newWitnesses() (*witnesses, error) {
	spec, err := probeSpec()
	if err != nil {
		return nil, err
	}
	m, err := ebpf.NewMap(spec.Maps[probeMapWitnesses])
	if err != nil {
		return nil, fmt.Errorf("create map %s: %w", probeMapWitnesses, err)
	}
	return &witnesses{m}, nil
}

func (w *witnesses) Close() error { return w.cookies.Close() }

// seenBy opens a socket, calls use, and returns the programs that saw it.
func (w *witnesses) seenBy(family int, use func(fd int) error) (probeWitness, error) {
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("socket cookie: %w", err)
	}
	if err := w.cookies.Put(cookie, uint32(0)); err != nil {
		return 0, err
	}
	if err := use(fd); err != nil {
		return 0, err
	}
	var seen uint32
	err = w.cookies.Lookup(cookie, &seen)
	return probeWitness(seen), err
}

// connectWitness connects to a socket of ours on lo. Nothing leaves the machine, and nobody else is called.
func (w *witnesses) connectWitness() (probeWitness, error) {
	listener, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("socket: %w", err)
	}
	defer func() { _ = unix.Close(listener) }()
	loopback := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
	if err := errors.Join(unix.Bind(listener, loopback), unix.Listen(listener, 1)); err != nil {
		return 0, fmt.Errorf("listen: %w", err)
	}
	addr, err := unix.Getsockname(listener)
	if err != nil {
		return 0, err
	}
	return w.seenBy(unix.AF_INET, func(fd int) error {
		// Does not wait: the programs are called before the first packet.
		if err := unix.SetNonblock(fd, true); err != nil {
			return err
		}
		if err := unix.Connect(fd, addr); err != nil && !errors.Is(err, unix.EINPROGRESS) {
			return fmt.Errorf("connect: %w", err)
		}
		return nil
	})
}

func (w *witnesses) bindWitness() (probeWitness, error) {
	seen, err := w.seenBy(unix.AF_INET, func(fd int) error {
		return unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	})
	if err != nil || !ipv6IsOn() {
		return seen, err
	}
	seen6, err := w.seenBy(unix.AF_INET6, func(fd int) error {
		return unix.Bind(fd, &unix.SockaddrInet6{Addr: [16]byte{15: 1}})
	})
	return seen & seen6, err
}

// testEffect asks whether the programs that were attached are called for sockets of this process. Those at kubelet's own
// cgroup are not for it; that kubelet is in there was seen when it was looked for.
func (a *hostAttachment) testEffect(w *witnesses) {
	var connected, bound probeWitness
	probe, bind, flows := &a.status.Probe, &a.status.Bind, &a.status.Flows
	var connectErr, bindErr error
	if probe.Attached || flows.Attached {
		connected, connectErr = w.connectWitness()
	}
	if bind.Attached {
		bound, bindErr = w.bindWitness()
	}
	if a.places.probe == a.places.cgroup {
		probe.judge(connected&probeWitnessWITNESS_PROBE != 0, connectErr)
	}
	flows.judge(connected&probeWitnessWITNESS_FLOWS != 0, connectErr)
	bind.judge(bound&probeWitnessWITNESS_BIND != 0, bindErr)
}

func (h *HookStatus) judge(seen bool, err error) {
	switch {
	case !h.Attached || seen:
	case err != nil:
		h.Problem = fmt.Sprintf("attached, but the test failed: %v", err)
	default:
		h.Problem = fmt.Sprintf("attached but not effective: cgroup %q does not hold this process: mount the host's cgroup2 root", h.Cgroup)
	}
}
