// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/cilium/ebpf/ringbuf"
)

// FlowKind says what happened to a connection.
type FlowKind uint8

const (
	FlowOpen   = FlowKind(flowsFlowKindFLOW_OPEN)
	FlowUpdate = FlowKind(flowsFlowKindFLOW_UPDATE) // still in use, every [HostConfig].FlowInterval
	FlowClose  = FlowKind(flowsFlowKindFLOW_CLOSE)  // also without FlowOpen before: it was refused, or nobody answered
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

// FlowPath says which way a connection of an app's goes, as far as its socket tells.
type FlowPath uint8

const (
	FlowUnknown     = FlowPath(flowsFlowPathPATH_UNKNOWN)     // out, but by no device with capture; or not known yet
	FlowCaptured    = FlowPath(flowsFlowPathPATH_CAPTURED)    // out, to ztunnel
	FlowPassthrough = FlowPath(flowsFlowPathPATH_PASSTHROUGH) // out, as it is; in, to a pod whose inbound is left alone, except in FlowOpen
	FlowDelivery    = FlowPath(flowsFlowPathPATH_DELIVERY)    // in, from ztunnel; in FlowOpen also what turns out to be FlowPassthrough
	FlowProbe       = FlowPath(flowsFlowPathPATH_PROBE)       // in, from a process of the host
	FlowLocal       = FlowPath(flowsFlowPathPATH_LOCAL)       // from the pod to itself
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

// FlowEvent is what one socket of an app's in an enrolled pod tells of its connection. A connection from a pod to itself
// has two. ztunnel's own connections are not told of.
type FlowEvent struct {
	Kind        FlowKind
	At          time.Time
	NetnsCookie uint64
	Socket      uint64 // the kernel's cookie of the socket: the same in all events of a connection
	Local       netip.AddrPort
	Remote      netip.AddrPort
	Outbound    bool // the pod connected; false: it accepted
	Path        FlowPath
	Sent        uint64 // bytes that the other end of this socket acknowledged; for a captured flow that is ztunnel
	Received    uint64 // bytes; this and Sent may be one off for a connection that ended by a reset
	RTT         time.Duration
	Retransmits uint32
	State       string // of TCP, such as "established"; in FlowClose the last one before
}

// tcpStates are the kernel's numbers, see BPF_TCP_ESTABLISHED in linux/bpf.h.
var tcpStates = [...]string{
	1: "established", "syn-sent", "syn-recv", "fin-wait-1", "fin-wait-2", "time-wait", "close", "close-wait", "last-ack",
	"listen", "closing", "new-syn-recv",
}

func tcpState(n uint8) string {
	if int(n) < len(tcpStates) && n > 0 {
		return tcpStates[n]
	}
	return fmt.Sprintf("state-%d", n)
}

// FlowReader reads the events of all pods of the node. One goroutine may read while others call the other methods.
type FlowReader struct {
	node   *Node
	events *ringbuf.Reader
	record ringbuf.Record

	mu       sync.Mutex
	deadline time.Time
}

// flowLatency is how late Read may be: the kernel wakes it only when events pile up.
const flowLatency = 100 * time.Millisecond

// Flows returns a reader of the connections' events. The kernel hands each event out once: a node has one reader at a
// time, and what happened while it had none comes first, as much as had room. The caller closes the reader, before n.
func (n *Node) Flows() (*FlowReader, error) {
	if n.host.FlowEvents == nil || n.host.FlowsLost == nil {
		return nil, fmt.Errorf("flows: %w", ErrNotLoaded)
	}
	events, err := ringbuf.NewReader(n.host.FlowEvents)
	if err != nil {
		return nil, fmt.Errorf("flows: %w", err)
	}
	return &FlowReader{node: n, events: events}, nil
}

// Read waits for the next event. After Close it returns an error wrapping [os.ErrClosed], past the deadline one wrapping
// [os.ErrDeadlineExceeded].
//
// An event may be read up to 0.1 s after it happened.
func (r *FlowReader) Read(e *FlowEvent) error {
	for {
		r.events.SetDeadline(time.Now().Add(flowLatency))
		err := r.events.ReadInto(&r.record)
		if errors.Is(err, os.ErrDeadlineExceeded) && !r.isPastDeadline() {
			continue
		}
		if err != nil {
			return fmt.Errorf("read flow: %w", err)
		}
		return e.decode(r.record.RawSample)
	}
}

func (r *FlowReader) isPastDeadline() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.deadline.IsZero() && !time.Now().Before(r.deadline)
}

// SetDeadline bounds the time that Read waits, to 0.1 s or so. The zero time means no bound.
func (r *FlowReader) SetDeadline(t time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.deadline = t
}

// Close wakes Read. Events that nobody read wait for the next reader.
func (r *FlowReader) Close() error { return r.events.Close() }

// Lost returns how many events found no room, ever since the node's maps were made.
func (r *FlowReader) Lost() (uint64, error) {
	var perCPU []uint64
	if err := r.node.host.FlowsLost.Lookup(uint32(0), &perCPU); err != nil {
		return 0, fmt.Errorf("read counter of lost flows: %w", err)
	}
	sum := uint64(0)
	for _, n := range perCPU {
		sum += n
	}
	return sum, nil
}
