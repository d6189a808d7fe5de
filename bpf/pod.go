// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// infoMap is the name of the pod's record among its maps.
const infoMap = "info"

// podMaps is what the programs of one pod share.
type podMaps struct {
	Info          *ebpf.Map
	Verdicts      *ebpf.Map
	Listeners     *ebpf.Map
	LocalFlows    *ebpf.Map
	Grandfathered *ebpf.Map
	Searching     *ebpf.Map
}

// byName's keys are the names of the maps in C and of their pins.
func (m *podMaps) byName() map[string]**ebpf.Map {
	return map[string]**ebpf.Map{
		infoMap:                 &m.Info,
		captureMapVerdicts:      &m.Verdicts,
		dispatchMapListeners:    &m.Listeners,
		localMapLocalFlows:      &m.LocalFlows,
		captureMapGrandfathered: &m.Grandfathered,
		captureMapSearching:     &m.Searching,
	}
}

func (m *podMaps) Close() error {
	var errs []error
	for _, each := range m.byName() {
		if *each != nil {
			errs = append(errs, (*each).Close())
		}
	}
	return errors.Join(errs...)
}

// createPodMaps creates the maps of a pod and pins them in dir.
func createPodMaps(dir string, grandfathered int) (_ *podMaps, err error) {
	specs, err := podMapSpecs(grandfathered)
	if err != nil {
		return nil, err
	}
	var maps podMaps
	for name, m := range maps.byName() {
		if *m, err = ebpf.NewMap(specs[name]); err == nil {
			err = (*m).Pin(filepath.Join(dir, name))
		}
		if err != nil {
			_ = maps.Close()
			return nil, fmt.Errorf("create map %q: %w", name, err)
		}
	}
	return &maps, nil
}

func podMapSpecs(grandfathered int) (map[string]*ebpf.MapSpec, error) {
	specs := map[string]*ebpf.MapSpec{infoMap: infoSpec()}
	for _, load := range []func() (*ebpf.CollectionSpec, error){loadCapture, loadLocal, loadDispatch} {
		spec, err := load()
		if err != nil {
			return nil, err
		}
		for name, m := range spec.Maps {
			specs[name] = m
		}
	}
	specs[captureMapGrandfathered].MaxEntries = uint32(max(grandfathered, 1))
	return specs, nil
}

// openPodMaps opens what createPodMaps pinned.
func openPodMaps(dir string) (*podMaps, error) {
	var maps podMaps
	for name, m := range maps.byName() {
		var err error
		if *m, err = ebpf.LoadPinnedMap(filepath.Join(dir, name), nil); err != nil {
			_ = maps.Close()
			return nil, fmt.Errorf("open map %q: %w", name, err)
		}
	}
	return &maps, nil
}

// Pod is one enrolled pod. Safe for concurrent use; it does not notice if another process detaches the pod.
type Pod struct {
	node *Node
	dir  string
	info PodInfo
	maps *podMaps
}

// Pod opens an attached pod. It wraps [ErrNotAttached] if there is none with this id. The caller closes it.
func (n *Node) Pod(id string) (*Pod, error) {
	if err := validID(id); err != nil {
		return nil, err
	}
	return n.openPod(filepath.Join(n.root, podsDir, id))
}

func (n *Node) openPod(dir string) (*Pod, error) {
	id := filepath.Base(dir)
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("pod %q: %w", id, ErrNotAttached)
	}
	maps, err := openPodMaps(dir)
	if err != nil {
		return nil, fmt.Errorf("pod %q: %w", id, err)
	}
	info, err := readInfo(maps.Info)
	if err != nil {
		_ = maps.Close()
		return nil, fmt.Errorf("pod %q: %w", id, err)
	}
	return &Pod{node: n, dir: dir, info: info, maps: maps}, nil
}

// Info returns what was recorded when the pod was attached.
func (p *Pod) Info() PodInfo { return p.info }

// Close lets go of the pod's maps. It stays attached.
func (p *Pod) Close() error { return p.maps.Close() }

// Verdicts returns all counters since the pod was attached, zeros included.
func (p *Pod) Verdicts() (map[Verdict]uint64, error) {
	verdicts, err := readVerdicts(p.maps.Verdicts)
	if err != nil {
		return nil, fmt.Errorf("pod %q: %w", p.info.ID, err)
	}
	return verdicts, nil
}

// SetListener puts a listening socket into a slot, in place of the one there; connections change over without a gap.
//
// The socket must be plain TCP (not MPTCP), of the slot's family and of the pod's network namespace, and transparent
// for an outbound slot: otherwise connections would be lost silently. The caller keeps fd; the slot empties when the
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
	options := []option{
		{"protocol is not plain TCP but", unix.SOL_SOCKET, unix.SO_PROTOCOL, unix.IPPROTO_TCP},
		{"not listening: accepting", unix.SOL_SOCKET, unix.SO_ACCEPTCONN, 1},
		{"family is not the slot's but", unix.SOL_SOCKET, unix.SO_DOMAIN, s.family()},
	}
	if s == SlotOutbound4 {
		options = append(options, option{"not transparent: IP_TRANSPARENT", unix.SOL_IP, unix.IP_TRANSPARENT, 1})
	}
	if s == SlotOutbound6 {
		options = append(options, option{"not transparent: IPV6_TRANSPARENT", unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1})
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

// netnsCookie identifies the network namespace of a socket until the next boot.
func netnsCookie(fd int) (uint64, error) {
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("netns cookie (needs Linux 5.14): %w", err)
	}
	return cookie, nil
}
