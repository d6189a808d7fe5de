// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Where our tc filters are in clsact mode. Docs and `tc filter show` show the numbers.
const (
	// FilterPriority is the first that runs, as no other owner's program may send a packet on unseen. The kernel puts a
	// new filter before those of the same priority.
	FilterPriority = 1
	// FilterHandle tells ours from the others of that priority: others count from 1.
	FilterHandle = 0x51ce
)

// hook is where a device's packets meet a program.
type hook struct {
	ifindex int
	attach  ebpf.AttachType
	// filter is the name of the tc filter in clsact mode. It holds the pod's cookie, so that an interface number that
	// is used again never makes one pod's filter another's.
	filter string
}

func (h hook) parent() uint32 {
	if h.attach == ebpf.AttachTCXIngress {
		return netlink.HANDLE_MIN_INGRESS
	}
	return netlink.HANDLE_MIN_EGRESS
}

// The functions below work on the calling thread's network namespace.

// setFilter runs prog at the hook from now on. A filter with our handle, whoever put it there, gives its place without a
// gap: the kernel swaps the two in one step.
func (h hook) setFilter(prog *ebpf.Program) error {
	if err := h.ensureClsact(); err != nil {
		return err
	}
	err := netlink.FilterReplace(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: h.ifindex, Parent: h.parent(), Handle: FilterHandle,
			Protocol: unix.ETH_P_ALL, Priority: FilterPriority,
		},
		Fd: prog.FD(), Name: h.filter, DirectAction: true,
	})
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("set filter: %w: is priority %d taken by a filter of another kind?", err, FilterPriority)
	}
	if err != nil {
		return fmt.Errorf("set filter: %w", err)
	}
	return nil
}

// ensureClsact leaves a qdisc that is there as it is. Nobody takes ours away again: others may use it by now.
func (h hook) ensureClsact() error {
	err := netlink.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: h.ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}})
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add clsact qdisc: %w", err)
	}
	// An ingress qdisc has the same handle, and takes a filter for egress as one for ingress.
	if h.attach == ebpf.AttachTCXIngress {
		return nil
	}
	qdiscs, err := netlink.QdiscList(h.device())
	if err != nil {
		return fmt.Errorf("list qdiscs: %w", err)
	}
	for _, q := range qdiscs {
		if _, ok := q.(*netlink.Clsact); ok {
			return nil
		}
	}
	return errors.New("add clsact qdisc: an ingress qdisc is in its place: delete that, or attach with tcx")
}

// deleteFilter takes our filter off and nothing else. What is not there is no error.
func (h hook) deleteFilter() error {
	f, err := h.findFilter()
	if err != nil || f == nil || f.Name != h.filter {
		return err
	}
	if err := netlink.FilterDel(f); err != nil && !isGone(err) {
		return fmt.Errorf("delete filter: %w", err)
	}
	return nil
}

// liveProgram is what our filter runs; 0 if it is gone or somebody else's.
func (h hook) liveProgram() (ebpf.ProgramID, error) {
	f, err := h.findFilter()
	if err != nil || f == nil || f.Name != h.filter {
		return 0, err
	}
	return ebpf.ProgramID(f.Id), nil
}

// findFilter returns the filter in our place, nil if there is none or the device is gone.
func (h hook) findFilter() (*netlink.BpfFilter, error) {
	filters, err := h.bpfFilters()
	if err != nil {
		return nil, fmt.Errorf("list filters: %w", err)
	}
	for _, f := range filters {
		if f.Priority == FilterPriority && f.Handle == FilterHandle {
			return f, nil
		}
	}
	return nil, nil
}

// bpfFilters lists the filters of this kind, everybody's.
func (h hook) bpfFilters() ([]*netlink.BpfFilter, error) {
	filters, err := listFilters(h.device(), h.parent())
	if err != nil {
		return nil, err
	}
	var all []*netlink.BpfFilter
	for _, f := range filters {
		if b, ok := f.(*netlink.BpfFilter); ok && b.Handle != 0 { // 0 stands for the whole priority
			all = append(all, b)
		}
	}
	return all, nil
}

// listFilters begins again when somebody else's change came in between.
func listFilters(device netlink.Link, parent uint32) (filters []netlink.Filter, err error) {
	for range 5 {
		filters, err = netlink.FilterList(device, parent)
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if isGone(err) {
		return nil, nil
	}
	return filters, err
}

func (h hook) device() netlink.Link {
	return &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: h.ifindex}}
}
