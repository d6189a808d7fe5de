// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// HostConfig says what to attach to the node as a whole, and where.
type HostConfig struct {
	// Cgroup is a folder of the cgroup2 hierarchy. Empty: its root, found in mountinfo.
	Cgroup string
	// ProbeCgroup is where the processes run whose connections to pods count as probes. Empty: kubelet's own cgroup if
	// a kubelet of the calling thread's network namespace has one, else Cgroup.
	ProbeCgroup string
	// FlowInterval is how often an open connection is reported again. 0: ten seconds.
	FlowInterval time.Duration

	Flows, Bind, Probe bool

	// HostCookie is the namespace that probes come from. 0: the calling thread's.
	HostCookie uint64
}

// HostStatus says what of [HostConfig] is in force.
type HostStatus struct {
	Probe HookStatus `json:"probe"`
	Bind  HookStatus `json:"bind"`
	Flows HookStatus `json:"flows"`
}

// Kinds of hooks.
const (
	HookCgroup  = "cgroup"
	HookHostEnd = "host-end" // the fallback of probe without cgroup2: on the host's ends of the pods' links
)

// HookStatus is the state of one hook.
type HookStatus struct {
	Attached bool   `json:"attached"`
	Cgroup   string `json:"cgroup,omitempty"`
	Kind     string `json:"kind,omitempty"`
	// TrustsAll says that every process of the host's namespace passes for a probe, not kubelet alone.
	TrustsAll bool   `json:"trustsAll,omitempty"`
	Problem   string `json:"problem,omitempty"` // empty: none, or the hook is not wanted
}

// defaultFlowInterval is what FlowInterval 0 means.
const defaultFlowInterval = 10 * time.Second

// Validate returns all mistakes that can be seen without looking at the system.
func (c *HostConfig) Validate() error {
	if c.FlowInterval < 0 {
		return fmt.Errorf("flow interval %s is negative", c.FlowInterval)
	}
	return nil
}

// AttachHost attaches what cfg asks for to the node, detaches the rest, and tests with sockets of its own that what it
// attached is called. It also enters the pods that are attached already.
//
// Attaching again replaces the programs in place, or moves them if their cgroup is another now. What this node cannot
// have, because there is no cgroup2 or the kernel is too old, is no error but a Problem of that hook; an error means
// that the state of the node is not what the status says. Connections that are open now are not told of by Flows.
func (n *Node) AttachHost(cfg HostConfig) (HostStatus, error) {
	if err := cfg.Validate(); err != nil {
		return HostStatus{}, fmt.Errorf("attach host: %w", err)
	}
	status, err := n.attachHost(cfg)
	if err != nil {
		return status, fmt.Errorf("attach host: %w", err)
	}
	return status, nil
}

func (n *Node) attachHost(cfg HostConfig) (HostStatus, error) {
	if !n.host.complete() {
		return HostStatus{}, ErrNotLoaded
	}
	if cfg.FlowInterval == 0 {
		cfg.FlowInterval = defaultFlowInterval
	}
	if cfg.HostCookie == 0 {
		var err error
		if cfg.HostCookie, err = currentNetnsCookie(); err != nil {
			return HostStatus{}, err
		}
	}
	err := n.registerAll()
	unlock, lockErr := n.lockHost()
	if lockErr != nil {
		return HostStatus{}, errors.Join(err, lockErr)
	}
	defer unlock()
	a := &hostAttachment{node: n, cfg: cfg, places: findPlaces(&cfg)}
	status, attachErr := a.run()
	return status, errors.Join(err, attachErr)
}

// HostStatus looks again at what AttachHost attached, from this process or another: whether it is still there, and
// whether kubelet is still where it was. AttachHost repairs what it finds.
func (n *Node) HostStatus() (HostStatus, error) {
	if n.host.Host == nil {
		return HostStatus{}, nil
	}
	record, err := readHostRecord(n.host.Host)
	if err != nil {
		return HostStatus{}, fmt.Errorf("host status: %w", err)
	}
	return n.recheck(&record), nil
}

// DetachHost takes away everything that AttachHost attached. Nothing attached is no error.
func (n *Node) DetachHost() error {
	unlock, err := n.lockHost()
	if err != nil {
		return fmt.Errorf("detach host: %w", err)
	}
	defer unlock()
	var errs []error
	for _, pin := range hostPins {
		errs = append(errs, dropHostLink(n.hostPin(pin)))
	}
	errs = append(errs, n.dropHostEnds(hostEndPrefix))
	if n.host.Host != nil {
		errs = append(errs, writeHostRecord(n.host.Host, &hostRecord{}))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("detach host: %w", err)
	}
	return nil
}

func (n *Node) hostPin(name string) string { return filepath.Join(n.root, nodeDir, name) }

// lockHost serialises what changes the programs of the host and the pods that are entered for them, between processes
// too. The caller calls the result.
func (n *Node) lockHost() (unlock func(), err error) {
	dir, err := os.Open(filepath.Join(n.root, nodeDir))
	if err != nil {
		return nil, fmt.Errorf("lock host: %w", err)
	}
	if err := flock(dir, true); err != nil {
		_ = dir.Close()
		return nil, fmt.Errorf("lock host: %w", err)
	}
	return func() { _ = dir.Close() }, nil
}
