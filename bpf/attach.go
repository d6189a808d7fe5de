// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/netns"
)

// PodConfig says which pod to attach to, and how.
type PodConfig struct {
	ID          string // names the pod for all other calls; without "/" and "."
	UID         string
	Namespace   string
	Name        string
	ContainerID string
	Network     string // of the CNI plugin's call, empty for all other callers

	NetnsPath  string
	Interfaces []string // inside the pod; not lo
	// HostIfindexes are the host's ends of the pod's links, in the calling thread's network namespace. Empty: no guard.
	HostIfindexes []int

	// CaptureAll captures connections to every destination, in the mesh or not.
	CaptureAll bool
	// Grandfather exempts the connections that are open now. For pods that run already; ignored when attaching again.
	Grandfather bool
	// Listeners are put into their slots before the first program is attached, so that no connection is refused
	// meanwhile. The caller keeps the descriptors. Slots that are not named stay as they are.
	Listeners map[Slot]int
}

// Validate returns all mistakes that can be seen without looking at the system.
func (c *PodConfig) Validate() error {
	errs := []error{validID(c.ID)}
	if c.NetnsPath == "" {
		errs = append(errs, errors.New("netns path is empty"))
	}
	if len(c.Interfaces) == 0 {
		errs = append(errs, errors.New("no interfaces"))
	}
	for _, i := range c.HostIfindexes {
		if i <= 0 {
			errs = append(errs, fmt.Errorf("host ifindex %d is not positive", i))
		}
	}
	return errors.Join(errs...)
}

func (c *PodConfig) info() PodInfo {
	return PodInfo{
		ID: c.ID, UID: c.UID, Namespace: c.Namespace, Name: c.Name, ContainerID: c.ContainerID, Network: c.Network,
		NetnsPath: c.NetnsPath, Interfaces: c.Interfaces, HostIfindexes: c.HostIfindexes, CaptureAll: c.CaptureAll,
	}
}

// AttachPod attaches the programs to a pod and pins them. All or nothing: on error nothing is left behind.
//
// Attaching again to the same namespace replaces the programs in place: no packet goes without, and listeners, open
// connections and counters stay. If that fails half-way the pod stays attached, with programs of both versions.
// A pod of the same id but another namespace is detached first. The caller closes the Pod; it stays attached.
//
// Needs Linux 6.6 (tcx).
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
	var captured []int
	err = ns.Do(func() (err error) {
		if captured, err = ifindexes(cfg.Interfaces); err != nil {
			return err
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

	a := &attachment{node: n, cfg: cfg, info: info, ns: ns, captured: captured, lock: lock}
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

// attachment is one call of AttachPod under the pod's lock.
type attachment struct {
	node     *Node
	cfg      PodConfig
	info     PodInfo
	ns       *netns.NS
	captured []int // ifindexes of cfg.Interfaces
	lock     *podLock
}

func (a *attachment) podDir() string { return filepath.Join(a.node.root, podsDir, a.cfg.ID) }

func (a *attachment) run() (*Pod, error) {
	// Leftovers of a process that died half-way.
	if err := errors.Join(takeDown(a.lock.newDir()), takeDown(a.lock.oldDir())); err != nil {
		return nil, err
	}
	old, err := a.node.openPod(a.podDir())
	if err == nil && old.info.NetnsCookie == a.info.NetnsCookie {
		a.info.LoopbackWasOpen = old.info.LoopbackWasOpen
		return old, closeOnError(old, a.replace(old))
	}
	if err == nil {
		_ = old.Close()
	}
	if !errors.Is(err, ErrNotAttached) {
		if err := a.node.detachLocked(a.cfg.ID, a.lock); err != nil {
			return nil, err
		}
	}
	return a.create()
}

func closeOnError(p *Pod, err error) error {
	if err != nil {
		_ = p.Close()
	}
	return err
}

// create builds the pod aside. The rename at its end is the commit point.
func (a *attachment) create() (_ *Pod, err error) {
	dir := a.lock.newDir()
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, takeDown(dir))
		}
	}()
	if err := a.build(dir); err != nil {
		return nil, err
	}
	if err := os.Rename(dir, a.podDir()); err != nil {
		return nil, err
	}
	dir = a.podDir()
	return a.node.openPod(dir)
}

func (a *attachment) build(dir string) error {
	// Not earlier: leftovers of ours in the namespace are gone only now.
	err := a.ns.Do(func() (err error) {
		a.info.LoopbackWasOpen, err = loopbackIsOpen()
		return err
	})
	if err != nil {
		return err
	}
	size, err := a.grandfatheredSize()
	if err != nil {
		return err
	}
	maps, err := createPodMaps(dir, size)
	if err != nil {
		return err
	}
	p := &Pod{node: a.node, dir: dir, info: a.info, maps: maps}
	defer func() { _ = p.Close() }()
	// First: it is what lets another process clean up after us.
	if err := writeInfo(maps.Info, &a.info); err != nil {
		return err
	}
	if err := a.fillSlots(p); err != nil {
		return err
	}
	if err := a.ns.Do(steer); err != nil {
		return err
	}
	if err := a.eachLink(p, func(w *wantedLink) error { return w.attach(dir) }); err != nil {
		return err
	}
	return a.grandfather(maps)
}

// replace gives an attached pod new programs and settings.
func (a *attachment) replace(p *Pod) error {
	if err := a.fillSlots(p); err != nil {
		return err
	}
	if err := a.ns.Do(steer); err != nil {
		return err
	}
	wanted := map[string]bool{}
	err := a.eachLink(p, func(w *wantedLink) error {
		wanted[w.pin] = true
		return w.update(p.dir)
	})
	if err != nil {
		return err
	}
	pins, err := linkPins(p.dir)
	if err != nil {
		return err
	}
	for _, pin := range pins {
		if !wanted[pin] { // an interface that is gone or no longer ours
			if err := detachPin(filepath.Join(p.dir, pin)); err != nil {
				return err
			}
		}
	}
	p.info = a.info
	return writeInfo(p.maps.Info, &a.info)
}

func (a *attachment) fillSlots(p *Pod) error {
	for slot, fd := range a.cfg.Listeners {
		if err := p.SetListener(slot, fd); err != nil {
			return err
		}
	}
	return nil
}

// eachLink loads the programs and calls do for every link that the pod should have. It stays on the calling thread,
// whose namespace is that of guard's interfaces.
func (a *attachment) eachLink(p *Pod, do func(*wantedLink) error) error {
	progs, err := loadPrograms(&a.node.maps, p.maps, settings{captureAll: a.cfg.CaptureAll})
	if err != nil {
		return err
	}
	defer progs.Close()
	links := wantedLinks(a.ns, progs, slices.Compact(slices.Sorted(slices.Values(a.captured))), a.cfg.HostIfindexes)
	for i := range links {
		if err := do(&links[i]); err != nil {
			return err
		}
	}
	return nil
}

// grandfatheredSize leaves room for the connections that open between counting and attaching.
func (a *attachment) grandfatheredSize() (size int, err error) {
	if !a.cfg.Grandfather {
		return 0, nil
	}
	err = a.ns.Do(func() error {
		flows, err := openConnections()
		size = 2*len(flows) + 1024
		return err
	})
	return size, err
}

// grandfather runs after the programs are attached: a connection is either listed here, or its SYN met capture.
func (a *attachment) grandfather(maps *podMaps) error {
	if !a.cfg.Grandfather {
		return nil
	}
	return a.ns.Do(func() error {
		flows, err := openConnections()
		if err != nil {
			return err
		}
		return grandfather(maps.Grandfathered, flows)
	})
}
