// SPDX-License-Identifier: Apache-2.0

// Package flows keeps what the datapath tells of the connections of enrolled pods: the open ones, the last that ended,
// and figures over all of them.
package flows

import (
	"net/netip"
	"time"

	"github.com/sluice-mesh/sluice/bpf"
)

// Flow is the latest that is known of one side of a connection.
type Flow struct {
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
	UID       string `json:"uid"`

	Kind     string         `json:"kind"` // open, update or close
	At       time.Time      `json:"at"`
	Local    netip.AddrPort `json:"local"`
	Remote   netip.AddrPort `json:"remote"`
	Outbound bool           `json:"outbound"`
	Path     string         `json:"path"` // as bpf.FlowPath
	Sent     uint64         `json:"sent"`
	Received uint64         `json:"received"`
	RTTMicro int64          `json:"rttMicroseconds"`
	// Retransmits counts segments.
	Retransmits uint32 `json:"retransmits"`
	State       string `json:"state"`
	// Refused says that the connection never opened: it was refused, or nobody answered.
	Refused bool `json:"refused,omitempty"`
	// Missed is how many events a slow reader lost before this one.
	Missed uint64 `json:"missed,omitempty"`

	cookie uint64 // of the pod's network namespace
}

// Direction is "outbound" or "inbound".
func (f *Flow) Direction() string {
	if f.Outbound {
		return "outbound"
	}
	return "inbound"
}

func newFlow(e *bpf.FlowEvent, pod owner) Flow {
	return Flow{
		cookie: e.NetnsCookie, Namespace: pod.namespace, Pod: pod.name, UID: pod.uid,
		Kind: e.Kind.String(), At: e.At, Local: e.Local, Remote: e.Remote, Outbound: e.Outbound, Path: e.Path.String(),
		Sent: e.Sent, Received: e.Received, RTTMicro: e.RTT.Microseconds(), Retransmits: e.Retransmits, State: e.State,
	}
}

// owner is the pod of a network namespace.
type owner struct{ namespace, name, uid string }
