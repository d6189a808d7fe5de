// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/netns"
)

// AttachPod attaches the programs to a pod and pins them. All or nothing: on error nothing is left behind.
//
// Attaching again to the same namespace replaces the programs in place: no packet goes without, and listeners, open
// connections and counters stay. If that fails half-way the pod stays attached, with programs of both versions.
// A device keeps its capture, whatever the pod calls it now and whatever cfg.Interfaces names, until ReleaseInterface
// takes it off. A pod of the same id but another namespace is detached first. The caller closes the Pod; it stays
// attached.
//
// Guard's interfaces are those of the calling thread's namespace. If the node's [AttachMode] has changed since, the pod
// gets the new one: for a moment it has both.
func (n *Node) AttachPod(cfg PodConfig) (*Pod, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("attach pod: %w", err)
	}
	p, err := n.attachPod(cfg)
	if err != nil {
		return nil, fmt.Errorf("attach pod %q: %w", cfg.ID, err)
	}
	return p, nil
}

func (n *Node) attachPod(cfg PodConfig) (*Pod, error) {
	ns, err := netns.Open(cfg.NetnsPath)
	if err != nil {
		return nil, err
	}
	defer func() { _ = ns.Close() }()
	info := cfg.info()
	if info.HostCookie, err = currentNetnsCookie(); err != nil {
		return nil, err
	}
	missing := map[string]error{}
	err = ns.Do(func() error {
		for _, name := range cfg.Interfaces {
			if i, err := ifindexOf(name); err != nil {
				missing[name] = err
			} else {
				info.Captured = append(info.Captured, Capture{name, i})
			}
		}
		return inspectNetns(ns, &info)
	})
	if err != nil {
		return nil, err
	}
	if info.BootID, err = readBootID(); err != nil {
		return nil, err
	}
	lock, err := n.lockPod(cfg.ID, true)
	if err != nil {
		return nil, err
	}
	defer lock.release()

	a := &attachment{node: n, cfg: cfg, info: info, ns: ns, missing: missing, lock: lock}
	return a.run()
}

// inspectNetns records what the calling thread's namespace is.
func inspectNetns(ns *netns.NS, info *PodInfo) error {
	id, err := ns.ID()
	if err != nil {
		return err
	}
	info.NetnsInode = id.Inode
	if info.NetnsCookie, err = currentNetnsCookie(); err != nil {
		return err
	}
	info.IPv6 = ipv6IsOn()
	return nil
}

func currentNetnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	return netnsCookie(fd)
}
