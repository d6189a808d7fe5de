// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/installer/controlplane"
	"github.com/sluice-mesh/sluice/installer/listeners"
)

// statusPageSize keeps an answer well below nodeapi.MaxMessageBytes.
const statusPageSize = 30

// Status is the answer to nodeapi.VerbStatus: one page of pods and what is true of all.
type Status struct {
	Node     string `json:"node"`
	Ready    bool   `json:"ready"`
	Ztunnels int    `json:"ztunnels"`
	// ZtunnelPIDs are their process numbers as the agent sees them, the newest last; 0 for one that it cannot see.
	ZtunnelPIDs []int `json:"ztunnelPIDs,omitempty"`
	// Refusing says that listeners are closed because no ztunnel has been there for long.
	Refusing bool `json:"refusing,omitempty"`
	// AttachMode is how programs are attached to devices.
	AttachMode bpf.AttachMode `json:"attachMode,omitempty"`
	// Host are the programs that serve the node as a whole; HostProblem is why they could not be told or attached.
	Host        bpf.HostStatus `json:"host"`
	HostProblem string         `json:"hostProblem,omitempty"`
	Pods        []PodStatus    `json:"pods"`
	// More says that pods with a greater uid follow.
	More bool `json:"more,omitempty"`
}

// PodStatus is one sandbox.
type PodStatus struct {
	UID            string       `json:"uid"`
	Namespace      string       `json:"namespace"`
	Name           string       `json:"name"`
	ContainerID    string       `json:"containerID"`
	Netns          string       `json:"netns"`
	Addresses      []netip.Addr `json:"addresses,omitempty"`
	Phase          string       `json:"phase"`
	ServiceAccount string       `json:"serviceAccount,omitempty"`
	// Settings are those in force.
	Settings Settings `json:"settings"`
	// Interfaces have capture; Guarded are those of them, counted, whose host end has guard.
	Interfaces []string `json:"interfaces,omitempty"`
	Guarded    int      `json:"guarded,omitempty"`
	// Listeners says of each slot "held" by the agent, "ztunnel" for held by ztunnel alone, or "empty".
	Listeners map[string]string `json:"listeners,omitempty"`
	// Verdicts counts by reason; reasons that never occurred are left out.
	Verdicts map[string]uint64 `json:"verdicts,omitempty"`
	// Drift is what differs from what was attached; Problem is why the pod is not as it should be.
	Drift   []string `json:"drift,omitempty"`
	Problem string   `json:"problem,omitempty"`
}

// MarkReady has status say that the agent is ready.
func (e *Enroller) MarkReady() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ready = true
}

func (e *Enroller) statusPage(after string) Status {
	e.mu.Lock()
	s := Status{Node: e.cfg.NodeName, Ready: e.ready, Refusing: e.refusing, AttachMode: e.cfg.Node.AttachMode(), Pods: []PodStatus{}}
	e.mu.Unlock()
	s.ZtunnelPIDs = e.cfg.Ztunnels.PIDs()
	s.Ztunnels = len(s.ZtunnelPIDs)
	s.Host, s.HostProblem = e.hostStatus()
	for _, p := range e.all() {
		if p.sandbox.UID <= after {
			continue
		}
		// Sandboxes of one uid stay on one page, because pages continue by uid.
		if n := len(s.Pods); n >= statusPageSize && s.Pods[n-1].UID != p.sandbox.UID {
			s.More = true
			break
		}
		s.Pods = append(s.Pods, e.podStatus(p))
	}
	return s
}

func (e *Enroller) podStatus(p *pod) PodStatus {
	e.mu.Lock()
	s := PodStatus{
		UID: p.sandbox.UID, Namespace: p.sandbox.Namespace, Name: p.sandbox.Name, ContainerID: p.id(),
		Netns: p.sandbox.Netns, Addresses: p.sandbox.Addresses(), Phase: string(p.phase), Problem: p.problem,
	}
	if p.inMeshLocked() {
		s.ServiceAccount = p.account
	}
	in := p.inside
	e.mu.Unlock()
	attached, err := e.cfg.Node.Pod(pinID(p.id()))
	if err != nil {
		if !errors.Is(err, bpf.ErrNotAttached) || in != nil {
			s.Drift = append(s.Drift, err.Error())
		}
		return s
	}
	defer func() { _ = attached.Close() }()
	var held []bpf.Slot
	if in != nil {
		held = in.set.Held()
	}
	s.readPins(attached, held)
	return s
}

// PinnedStatuses is what the pins alone tell, for when no agent answers.
func PinnedStatuses(node *bpf.Node) ([]PodStatus, error) {
	infos, err := node.Pods()
	all := []PodStatus{}
	for _, info := range infos {
		s := PodStatus{
			UID: info.UID, Namespace: info.Namespace, Name: info.Name, ContainerID: info.ContainerID,
			Netns: info.NetnsPath, Phase: "attached",
		}
		attached, err := node.Pod(info.ID)
		if err != nil {
			s.Drift = append(s.Drift, err.Error())
		} else {
			s.readPins(attached, nil)
			_ = attached.Close()
		}
		all = append(all, s)
	}
	return all, err
}

func (s *PodStatus) readPins(attached *bpf.Pod, held []bpf.Slot) {
	info := attached.Info()
	s.Settings = attachedSettings(info)
	s.Interfaces, s.Guarded = info.Interfaces, len(info.HostIfindexes)
	s.Listeners = map[string]string{}
	for _, slot := range listeners.Names(info.CaptureDNS) {
		state := "empty"
		if _, ok, err := attached.ListenerCookie(slot); err != nil {
			state = err.Error()
		} else if ok && slices.Contains(held, slot) {
			state = "held"
		} else if ok {
			state = "ztunnel"
		}
		s.Listeners[slot.String()] = state
	}
	verdicts, err := attached.Verdicts()
	if err != nil {
		s.Drift = append(s.Drift, err.Error())
	}
	s.Verdicts = map[string]uint64{}
	for v, n := range verdicts {
		if n > 0 {
			s.Verdicts[v.String()] = n
		}
	}
	s.Drift = append(s.Drift, lines(attached.Check())...)
}

// lines takes a joined error apart, one mismatch a line.
func lines(err error) []string {
	if err == nil {
		return nil
	}
	for inner := err; inner != nil; inner = errors.Unwrap(inner) {
		joined, ok := inner.(interface{ Unwrap() []error })
		if !ok {
			continue
		}
		var all []string
		for _, e := range joined.Unwrap() {
			all = append(all, lines(e)...)
		}
		return all
	}
	return []string{err.Error()}
}

// PodsByPhase counts the known pods.
func (e *Enroller) PodsByPhase() map[string]int {
	e.mu.Lock()
	defer e.mu.Unlock()
	counts := map[string]int{}
	for _, p := range e.pods {
		counts[string(p.phase)]++
	}
	return counts
}

// Figures are the counters of one pod name, over all its sandboxes.
type Figures struct {
	Verdicts map[string]uint64
	Troubled bool
}

// FiguresByPod reads the counters of all pods in the mesh, by namespace and name.
func (e *Enroller) FiguresByPod() map[controlplane.Name]Figures {
	all := map[controlplane.Name]Figures{}
	for _, p := range e.all() {
		name := controlplane.Name{Namespace: p.sandbox.Namespace, Name: p.sandbox.Name}
		f, ok := all[name]
		if !ok {
			f.Verdicts = map[string]uint64{}
		}
		e.mu.Lock()
		f.Troubled = f.Troubled || p.problem != ""
		e.mu.Unlock()
		e.addVerdicts(p, f.Verdicts)
		all[name] = f
	}
	return all
}

// addVerdicts adds nothing for a pod that is not attached.
func (e *Enroller) addVerdicts(p *pod, to map[string]uint64) {
	attached, err := e.cfg.Node.Pod(pinID(p.id()))
	if err != nil {
		return
	}
	defer func() { _ = attached.Close() }()
	verdicts, err := attached.Verdicts()
	if err != nil {
		e.podLog(p).Warn("read verdicts", "err", err)
	}
	for v, n := range verdicts {
		to[v.String()] += n
	}
}
