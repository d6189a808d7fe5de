// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
)

var (
	// ErrNotLoaded reports a pin root below which no agent has loaded the node's maps.
	ErrNotLoaded = errors.New("the node's maps are not loaded")
	// ErrNotAttached reports a pod without programs.
	ErrNotAttached = errors.New("pod is not attached")
)

// Folders below the pin root.
const (
	nodeDir = "node"
	podsDir = "pods"
	workDir = "work"
)

// nodeMaps is what all pods of a node share.
type nodeMaps struct {
	SocketTags   *ebpf.Map
	ProbeFlows   *ebpf.Map
	Destinations *ebpf.Map
	Complete     *ebpf.Map
}

// byName's keys are the names of the maps in C and of their pins.
func (m *nodeMaps) byName() map[string]**ebpf.Map {
	return map[string]**ebpf.Map{
		captureMapSocketTags:   &m.SocketTags,
		captureMapProbeFlows:   &m.ProbeFlows,
		captureMapDestinations: &m.Destinations,
		captureMapComplete:     &m.Complete,
	}
}

// Node is the shared part of the datapath and the way to its pods. Safe for concurrent use, also by other processes.
type Node struct {
	root string
	mode AttachMode
	maps nodeMaps
	host hostMaps
}

// LoadNode returns the node pinned below root, after creating what is missing of it.
//
// root need not exist, but must be on a bpffs. The node's attach mode is decided here, for all who open it. The caller
// closes the Node; the pins stay.
//
// Maps whose shape an older release made are replaced, and the programs of attached pods with them, in place; the set of
// destinations is then incomplete until somebody completes it. Processes that opened the node before must open it
// again; for who only fills the destinations, [OpenDestinations] is enough. Pins of a newer release are an error wrapping
// [ErrNewerRelease], and untouched.
func LoadNode(root string, opts ...Option) (*Node, error) {
	n, err := loadNode(root, opts)
	if err != nil {
		return nil, fmt.Errorf("load node: %w", err)
	}
	return n, nil
}

// Option is a choice of LoadNode's caller.
type Option func(*nodeSettings)

// WithAttachMode sets the node's attach mode. Without it, it is AttachAuto.
func WithAttachMode(m AttachMode) Option {
	return func(s *nodeSettings) { s.AttachMode = m }
}

func loadNode(root string, opts []Option) (*Node, error) {
	if err := requireBPFFS(root); err != nil {
		return nil, err
	}
	if _, err := readSettings(root); err != nil { // before anything is changed
		return nil, err
	}
	settings := nodeSettings{Version: nodeVersion, AttachMode: AttachAuto}
	for _, o := range opts {
		o(&settings)
	}
	var err error
	if settings.AttachMode, err = settings.AttachMode.resolve(); err != nil {
		return nil, err
	}
	// Without CAP_SYS_RESOURCE this fails, which matters only before Linux 5.11; creating a map then says so.
	_ = rlimit.RemoveMemlock()
	for _, dir := range []string{nodeDir, podsDir, workDir} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o700); err != nil {
			return nil, err
		}
	}
	spec, err := captureSpec()
	if err != nil {
		return nil, err
	}
	migrated, err := migrateNode(root, spec.Maps)
	if err != nil {
		return nil, err
	}
	n, err := openNode(root, createPinned)
	if err != nil {
		return nil, err
	}
	n.mode = settings.AttachMode
	if err := writeSettings(root, settings); err != nil {
		_ = n.Close()
		return nil, err
	}
	if migrated {
		// What fails here goes on capturing everything by the old maps; Check names it, attaching again repairs it.
		_ = n.reload()
	}
	return n, nil
}

// OpenNode returns the node pinned below root. It wraps [ErrNotLoaded] if [LoadNode] was never called there. The
// caller closes the Node.
func OpenNode(root string) (*Node, error) {
	settings, err := readSettings(root)
	if err != nil {
		return nil, fmt.Errorf("open node %q: %w", root, err)
	}
	n, err := openNode(root, openPinned)
	if err != nil {
		return nil, err
	}
	n.mode = settings.AttachMode
	return n, nil
}

// AttachMode is how pods of this node are attached: [AttachTCX] or [AttachClsact].
func (n *Node) AttachMode() AttachMode { return n.mode }

func openNode(root string, open func(string, *ebpf.MapSpec) (*ebpf.Map, error)) (_ *Node, err error) {
	spec, err := captureSpec()
	if err != nil {
		return nil, err
	}
	n := &Node{root: root}
	for name, m := range n.maps.byName() {
		path := filepath.Join(root, nodeDir, name)
		if *m, err = open(path, spec.Maps[name]); err != nil {
			_ = n.Close()
			return nil, fmt.Errorf("open node %q: map %q: %w", root, name, err)
		}
	}
	if n.host, err = openHostMaps(root, open); err != nil {
		_ = n.Close()
		return nil, fmt.Errorf("open node %q: %w", root, err)
	}
	return n, nil
}

// openPinned opens a map that must be there.
func openPinned(path string, spec *ebpf.MapSpec) (*ebpf.Map, error) {
	m, err := openResized(path, spec)
	if err != nil {
		return nil, err
	}
	if err := spec.Compatible(m); err != nil {
		_ = m.Close()
		return nil, otherVersion(path, err)
	}
	return m, nil
}

func otherVersion(path string, err error) error {
	return fmt.Errorf("pin %q is of another version: %w", path, err)
}

// openResized opens a map that must be there, but may be for more or fewer entries than spec says.
func openResized(path string, spec *ebpf.MapSpec) (*ebpf.Map, error) {
	m, err := ebpf.LoadPinnedMap(path, nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w (no pin %q)", ErrNotLoaded, path)
	}
	if err != nil {
		return nil, err
	}
	resized := spec.Copy()
	resized.MaxEntries = m.MaxEntries()
	if err := resized.Compatible(m); err != nil {
		_ = m.Close()
		return nil, otherVersion(path, err)
	}
	return m, nil
}

// createPinned opens a map, or creates and pins it. Of two processes that create it at once, one loses and opens the
// other's.
func createPinned(path string, spec *ebpf.MapSpec) (*ebpf.Map, error) {
	m, err := openPinned(path, spec)
	if !errors.Is(err, ErrNotLoaded) {
		return m, err
	}
	if m, err = ebpf.NewMap(spec); err != nil {
		return nil, err
	}
	if err = m.Pin(path); err == nil {
		return m, nil
	}
	_ = m.Close()
	if errors.Is(err, os.ErrExist) {
		return openPinned(path, spec)
	}
	return nil, err
}

// Close lets go of the maps. What is pinned and attached stays. Pods of n must not be used afterwards.
func (n *Node) Close() error {
	errs := []error{n.host.Close()}
	for m := range maps.Values(n.maps.byName()) {
		if *m != nil {
			errs = append(errs, (*m).Close())
		}
	}
	return errors.Join(errs...)
}

// TagSocket tells capture what to do with the socket's packets, from the next one on.
//
// [TagProxy] exempts them, [TagNone] takes that back. Tag before connect or listen; sockets accepted from a tagged
// listener inherit it. The socket's network namespace does not matter. Other tags are capture's own: an error.
func (n *Node) TagSocket(fd int, t Tag) error {
	if t != TagProxy && t != TagNone {
		return fmt.Errorf("tag socket: tag %v is not for sockets to be given", t)
	}
	value := captureSocketTag{Tag: uint32(t)}
	if err := n.maps.SocketTags.Put(uint32(fd), &value); err != nil {
		return fmt.Errorf("tag socket %v: %w", t, err)
	}
	return nil
}

// SocketTag returns the socket's tag, [TagNone] if it has none.
func (n *Node) SocketTag(fd int) (Tag, error) {
	var value captureSocketTag
	err := n.maps.SocketTags.Lookup(uint32(fd), &value)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return TagNone, nil
	}
	if err != nil {
		return TagNone, fmt.Errorf("read socket tag: %w", err)
	}
	return Tag(value.Tag), nil
}
