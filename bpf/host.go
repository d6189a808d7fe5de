// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"time"
)

// HostConfig says what to attach to the node as a whole, and where.
type HostConfig struct {
	// Cgroup is a folder of the cgroup2 hierarchy. Empty: its root, found in mountinfo.
	Cgroup string
	// ProbeCgroup is where the processes run whose connections to pods count as probes. Empty: kubelet's own cgroup if
	// a kubelet has one, else Cgroup.
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

var errNotYet = errors.New("not implemented")

// AttachHost attaches what cfg asks for to the node.
func (n *Node) AttachHost(cfg HostConfig) (HostStatus, error) { return HostStatus{}, errNotYet }

// HostStatus looks at what is attached.
func (n *Node) HostStatus() (HostStatus, error) { return HostStatus{}, errNotYet }

// DetachHost takes everything away that AttachHost attached.
func (n *Node) DetachHost() error { return nil }
