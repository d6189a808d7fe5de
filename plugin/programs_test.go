// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"net"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/netns"
)

// Attach types as in linux/bpf.h.
const (
	attachSKLookup   = 36
	attachTCXIngress = 46
	attachTCXEgress  = 47
)

// programs prints how many programs hang on each link, and on the socket lookup, of the calling thread's namespace. It
// asks the kernel itself: what the pins say is what the tests doubt.
func programs(w io.Writer) error {
	links, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, l := range links {
		in, err := countPrograms(uint32(l.Index), attachTCXIngress)
		if err != nil {
			return err
		}
		out, err := countPrograms(uint32(l.Index), attachTCXEgress)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "programs %s in %d out %d\n", l.Name, in, out)
	}
	ns, err := netns.Current()
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	lookup, err := countPrograms(uint32(ns.FD()), attachSKLookup)
	fmt.Fprintf(w, "programs sk_lookup %d\n", lookup)
	return err
}

// countPrograms is BPF_PROG_QUERY with room for none: the kernel answers with the count.
func countPrograms(target, attachType uint32) (uint32, error) {
	attr := struct {
		target, attachType, queryFlags, attachFlags uint32
		progIDs                                     uint64
		count, pad                                  uint32
		rest                                        [4]uint64
	}{target: target, attachType: attachType}
	_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_QUERY, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno != 0 && errno != unix.ENOSPC {
		return 0, fmt.Errorf("query programs of type %d: %w", attachType, errno)
	}
	return attr.count, nil
}
