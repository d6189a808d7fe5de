// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
)

// hostRecord is what AttachHost leaves for who asks later.
type hostRecord struct {
	Status HostStatus `json:"status"`
	// FindKubelet says that probe's cgroup was to be kubelet's, if it has one, below Mount.
	FindKubelet bool        `json:"findKubelet,omitempty"`
	Mount       cgroupMount `json:"mount"`
	// HostEnd says that pods get the fallback of probe.
	HostEnd bool `json:"hostEnd,omitempty"`
}

func writeHostRecord(m *ebpf.Map, r *hostRecord) error {
	text, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode host record: %w", err)
	}
	if len(text) > maxInfoBytes {
		return fmt.Errorf("encode host record: %d bytes do not fit into %d", len(text), maxInfoBytes)
	}
	value := make([]byte, maxInfoBytes)
	copy(value, text)
	if err := m.Put(uint32(0), value); err != nil {
		return fmt.Errorf("write host record: %w", err)
	}
	return nil
}

// readHostRecord returns an empty record if nothing was ever attached.
func readHostRecord(m *ebpf.Map) (r hostRecord, err error) {
	value := make([]byte, maxInfoBytes)
	if err := m.Lookup(uint32(0), value); err != nil {
		return r, fmt.Errorf("read host record: %w", err)
	}
	text, _, _ := bytes.Cut(value, []byte{0})
	if len(text) == 0 {
		return r, nil
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return r, fmt.Errorf("decode host record: %w: call AttachHost again", err)
	}
	return r, nil
}

// recheck compares the record with the system. What was wrong before stays so until AttachHost looked again.
func (n *Node) recheck(r *hostRecord) HostStatus {
	s := r.Status
	recheckHook(&s.Probe, n.hostPin(probeLink))
	recheckHook(&s.Bind, n.hostPin(bind4Link), n.hostPin(bind6Link))
	recheckHook(&s.Flows, n.hostPin(flowsLink))
	if r.FindKubelet && s.Probe.Attached && s.Probe.Kind == HookCgroup && s.Probe.Problem == "" {
		if now := kubeletCgroup(procDir, r.Mount); now != "" && now != s.Probe.Cgroup {
			s.Probe.Problem = fmt.Sprintf("kubelet is in cgroup %q now, its connections do not count as probes: attach again", now)
		}
	}
	return s
}

func recheckHook(h *HookStatus, pins ...string) {
	if !h.Attached || h.Kind != HookCgroup {
		return
	}
	now, err := cgroupID(h.Cgroup)
	if err != nil {
		h.Attached = !os.IsNotExist(err)
		h.Problem = fmt.Sprintf("cgroup: %v: attach again", err)
		return
	}
	for _, pin := range pins {
		id, err := linkCgroup(pin)
		switch {
		case err != nil:
			h.Attached, h.Problem = false, fmt.Sprintf("link: %v: attach again", err)
		case id == 0:
			h.Attached, h.Problem = false, fmt.Sprintf("cgroup %q was removed, and the program with it: attach again", h.Cgroup)
		case id != now:
			h.Attached, h.Problem = false, fmt.Sprintf("cgroup %q was made anew without the program: attach again", h.Cgroup)
		}
	}
}
