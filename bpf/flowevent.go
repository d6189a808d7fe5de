// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// decode reads a flow_event. Longer ones are of a newer release, and begin the same.
func (e *FlowEvent) decode(b []byte) error {
	var raw flowsFlowEvent
	if len(b) < int(unsafe.Sizeof(raw)) {
		return fmt.Errorf("decode flow: %d bytes, want %d", len(b), unsafe.Sizeof(raw))
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&raw)), unsafe.Sizeof(raw)), b) // has no padding, see flows.bpf.c
	*e = FlowEvent{
		Kind: FlowKind(raw.Kind), At: wallClock(raw.At), NetnsCookie: raw.Netns, Socket: raw.Socket,
		Local:    addrPort(raw.Flow.Src.Word, raw.Flow.Sport),
		Remote:   addrPort(raw.Flow.Dst.Word, raw.Flow.Dport),
		Outbound: raw.Outbound != 0, Path: FlowPath(raw.Path),
		Sent: raw.Sent, Received: raw.Received, RTT: time.Duration(raw.RttUs) * time.Microsecond,
		Retransmits: raw.Retransmits, State: tcpState(raw.State),
	}
	return nil
}

// clock keeps the difference between the kernel's time and the clock on the wall for a while.
var clock struct {
	sync.Mutex
	read   time.Time
	offset int64 // wall clock minus kernel time, ns
}

// wallClock turns a kernel time (bpf_ktime_get_ns) into that of the clock on the wall, as it went within the last second.
func wallClock(ktime uint64) time.Time {
	clock.Lock()
	defer clock.Unlock()
	now := time.Now()
	if clock.read.IsZero() || now.Sub(clock.read) > time.Second {
		var ts unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
			return now
		}
		clock.read, clock.offset = now, now.UnixNano()-ts.Nano()
	}
	return time.Unix(0, int64(ktime)+clock.offset)
}

// addrPort is the other way of newAddress.
func addrPort(word [4]uint32, portBE uint16) netip.AddrPort {
	var b [16]byte
	for i, w := range word {
		binary.NativeEndian.PutUint32(b[4*i:], w)
	}
	var port [2]byte
	binary.NativeEndian.PutUint16(port[:], portBE)
	return netip.AddrPortFrom(netip.AddrFrom16(b).Unmap(), binary.BigEndian.Uint16(port[:]))
}
