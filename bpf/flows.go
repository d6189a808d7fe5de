// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"net/netip"
	"time"
)

// FlowKind says what happened to a connection.
type FlowKind uint8

// Kinds of events.
const (
	FlowOpen   FlowKind = 1
	FlowUpdate FlowKind = 2
	FlowClose  FlowKind = 3
)

func (k FlowKind) String() string {
	switch k {
	case FlowOpen:
		return "open"
	case FlowUpdate:
		return "update"
	case FlowClose:
		return "close"
	default:
		return fmt.Sprintf("kind-%d", uint8(k))
	}
}

// FlowPath says how a connection of an app's goes, as far as its socket tells.
type FlowPath uint8

// Paths.
const (
	FlowUnknown     FlowPath = 0
	FlowCaptured    FlowPath = 1 // out, through ztunnel
	FlowPassthrough FlowPath = 2 // out, as it is
	FlowDelivery    FlowPath = 3 // in, from ztunnel
	FlowProbe       FlowPath = 4 // in, from a process of the host
	FlowLocal       FlowPath = 5 // within the pod
)

func (p FlowPath) String() string {
	switch p {
	case FlowUnknown:
		return "unknown"
	case FlowCaptured:
		return "captured"
	case FlowPassthrough:
		return "passthrough"
	case FlowDelivery:
		return "delivery"
	case FlowProbe:
		return "probe"
	case FlowLocal:
		return "local"
	default:
		return fmt.Sprintf("path-%d", uint8(p))
	}
}

// FlowEvent is one word of a connection of an app's in an enrolled pod. ztunnel's own connections are not told of.
type FlowEvent struct {
	Kind        FlowKind
	At          time.Time
	NetnsCookie uint64
	Socket      uint64 // the kernel's cookie of the socket: the same in all events of a connection
	Local       netip.AddrPort
	Remote      netip.AddrPort
	Outbound    bool // the pod connected; false: it accepted
	Path        FlowPath
	Sent        uint64 // payload bytes that the peer has acknowledged
	Received    uint64 // payload bytes
	RTT         time.Duration
	Retransmits uint32
	State       string // of TCP, such as "established"; in FlowClose the last one before
}

// FlowReader reads the events of all pods of the node.
type FlowReader struct{}

// Flows returns a reader of the connections' events.
func (n *Node) Flows() (*FlowReader, error) { return nil, errNotYet }

// Read waits for the next event.
func (r *FlowReader) Read(e *FlowEvent) error { return errNotYet }

// SetDeadline makes Read return an error wrapping os.ErrDeadlineExceeded at t.
func (r *FlowReader) SetDeadline(t time.Time) {}

// Close wakes Read.
func (r *FlowReader) Close() error { return nil }

// Lost returns how many events found no room since the node was loaded.
func (r *FlowReader) Lost() (uint64, error) { return 0, errNotYet }
