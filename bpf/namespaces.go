// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
)

// namespaceFlags are what bind and flows do for every enrolled pod.
const namespaceFlags = uint32(flowsNamespaceFlagNAMESPACE_BIND | flowsNamespaceFlagNAMESPACE_FLOWS)

// register enters a pod for the programs of the host. Doing so again replaces its addresses.
//
// On a node that no agent of this release has loaded it does nothing: that agent enters all pods when it comes.
func (n *Node) register(info *PodInfo) error {
	if !n.host.complete() {
		return nil
	}
	unlock, err := n.lockHost()
	if err != nil {
		return fmt.Errorf("register: %w", err)
	}
	defer unlock()
	if err := n.host.Namespaces.Put(info.NetnsCookie, namespaceFlags); err != nil {
		return fmt.Errorf("register namespace: %w", err)
	}
	record, err := readHostRecord(n.host.Host)
	if err != nil {
		return fmt.Errorf("register: %w", err)
	}
	if record.HostEnd {
		if err := n.syncHostEnds(info, true); err != nil {
			return fmt.Errorf("register: %w", err)
		}
	}
	return n.setAddresses(info)
}

// unregister takes a pod out again. An address that another pod has by now stays that pod's.
func (n *Node) unregister(info *PodInfo) error {
	if !n.host.complete() {
		return nil
	}
	unlock, err := n.lockHost()
	if err != nil {
		return fmt.Errorf("unregister: %w", err)
	}
	defer unlock()
	gone := *info
	gone.Addresses = nil
	errs := []error{n.setAddresses(&gone), n.syncHostEnds(&gone, false)}
	if err := n.host.Namespaces.Delete(info.NetnsCookie); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		errs = append(errs, fmt.Errorf("unregister namespace: %w", err))
	}
	return errors.Join(errs...)
}

// setAddresses makes info's addresses the only ones that are entered for its namespace. The caller holds the host's lock.
func (n *Node) setAddresses(info *PodInfo) error {
	var wanted []captureAddress
	for _, addr := range info.Addresses {
		wanted = append(wanted, newAddress(addr))
	}
	entered, err := n.podAddresses()
	if err != nil {
		return err
	}
	for addr, cookie := range entered {
		if cookie != info.NetnsCookie || slices.Contains(wanted, addr) {
			continue
		}
		if err := n.host.PodAddresses.Delete(addr); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("remove address of pod: %w", err)
		}
	}
	for _, addr := range wanted {
		if err := n.host.PodAddresses.Put(addr, info.NetnsCookie); err != nil {
			return fmt.Errorf("enter address of pod: %w", err)
		}
	}
	return nil
}

func (n *Node) podAddresses() (map[captureAddress]uint64, error) {
	var (
		all    = map[captureAddress]uint64{}
		addr   captureAddress
		cookie uint64
	)
	entries := n.host.PodAddresses.Iterate()
	for entries.Next(&addr, &cookie) {
		all[addr] = cookie
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("list addresses of pods: %w", err)
	}
	return all, nil
}

// SetAddresses says which addresses the pod has from now on. Connections of the host's processes to them reach the app.
func (p *Pod) SetAddresses(addrs []netip.Addr) error {
	lock, err := p.node.lockPod(filepath.Base(p.dir), true)
	if err != nil {
		return fmt.Errorf("set addresses: %w", err)
	}
	defer lock.release()
	info, err := readInfo(p.maps.Info) // another process may have changed it
	if err != nil {
		return fmt.Errorf("set addresses of pod %q: %w", p.info.ID, err)
	}
	info.Addresses = addrs
	if err := errors.Join(writeInfo(p.maps.Info, &info), p.node.register(&info)); err != nil {
		return fmt.Errorf("set addresses of pod %q: %w", p.info.ID, err)
	}
	p.info.Addresses = addrs
	return nil
}

// registerAll enters every attached pod, and takes out what belongs to none: a process died between two steps, or the
// pods are of a release that did not enter them.
func (n *Node) registerAll() error {
	// In this order: what is entered now and not listed below, while nobody attaches in between, belongs to none.
	entered, err := n.registered()
	busy := n.isAttaching()
	pods, listErr := n.Pods()
	errs := []error{err, listErr}
	live := map[uint64]bool{}
	for i := range pods {
		live[pods[i].NetnsCookie] = true
		errs = append(errs, n.register(&pods[i]))
	}
	if busy || listErr != nil {
		return errors.Join(errs...) // a pod that could not be read is not gone
	}
	for _, cookie := range entered {
		if !live[cookie] {
			errs = append(errs, n.unregister(&PodInfo{NetnsCookie: cookie}))
		}
	}
	return errors.Join(errs...)
}

// isAttaching says whether some pod is being attached or detached just now: it is entered before it is listed.
func (n *Node) isAttaching() bool {
	ids, err := n.ids(workDir)
	return err != nil || len(ids) > 0
}

// registered lists the namespaces that anything is entered for.
func (n *Node) registered() ([]uint64, error) {
	var (
		cookies []uint64
		cookie  uint64
		flags   uint32
	)
	entries := n.host.Namespaces.Iterate()
	for entries.Next(&cookie, &flags) {
		cookies = append(cookies, cookie)
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	addrs, err := n.podAddresses()
	for _, cookie := range addrs {
		cookies = append(cookies, cookie)
	}
	slices.Sort(cookies)
	return slices.Compact(cookies), err
}
