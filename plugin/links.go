// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/sluice-mesh/sluice/internal/netns"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

// errNodeNetns reports a sandbox that has no network namespace of its own.
var errNodeNetns = errors.New("CNI_NETNS is the node's own network namespace")

// resolveLinks finds the pod's interfaces and notes the host's end of each, as an ifindex in the plugin's own
// namespace. Loopbacks are dropped from the list: prevResult may name them, capture is not for them.
//
// A link without an end here (macvlan, SR-IOV) keeps 0; such a pod has no guard. One without addresses, which a plugin
// may leave out of its result, has those that the kernel knows. On error pod is as it was.
func resolveLinks(pod *nodeapi.Pod) error {
	var links []podLink
	err := insidePod(pod.Netns, func(nodeID int) (err error) {
		links, err = podLinks(pod.Interfaces, nodeID)
		return err
	})
	if err != nil {
		return err
	}
	if len(links) == 0 {
		return errors.New("prevResult names no interface inside the pod but loopback")
	}
	pod.Interfaces = withHostEnds(links)
	return nil
}

// addLinks adds to the pod's interfaces those that wanted names and that are there, with all that resolveLinks finds of
// one, and where others is set every further one with an address. On error pod is as it was.
func addLinks(pod *nodeapi.Pod, wanted []string, others bool) error {
	var links []podLink
	err := insidePod(pod.Netns, func(nodeID int) error {
		more, err := moreLinks(names(pod.Interfaces), wanted, others)
		if err != nil {
			return err
		}
		links, err = podLinks(more, nodeID)
		return err
	})
	if err != nil {
		return err
	}
	pod.Interfaces = append(pod.Interfaces, withHostEnds(links)...)
	return nil
}

// moreLinks runs inside the pod. An address of any reach counts that leaves the machine: a link with one is a way out.
func moreLinks(have, wanted []string, others bool) ([]nodeapi.Interface, error) {
	all, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var more []nodeapi.Interface
	for _, link := range all {
		name := link.Attrs().Name
		if slices.Contains(have, name) {
			continue
		}
		want := slices.Contains(wanted, name)
		if !want && others {
			addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
			if err != nil {
				return nil, fmt.Errorf("addresses of %q: %w", name, err)
			}
			want = slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.Scope == int(netlink.SCOPE_UNIVERSE) })
		}
		if want {
			more = append(more, nodeapi.Interface{Name: name})
		}
	}
	return more, nil
}

// insidePod runs fn inside the namespace at path, which must not be the plugin's own. nodeID is what the latter is called
// in there; below 0 if it has no name, so that no link of the pod ends in it.
func insidePod(path string, fn func(nodeID int) error) error {
	ns, err := netns.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	host, err := netns.Current()
	if err != nil {
		return err
	}
	defer func() { _ = host.Close() }()
	if err := distinct(ns, host); err != nil {
		return err
	}
	return ns.Do(func() error {
		id, err := netlink.GetNetNsIdByFd(host.FD())
		if err != nil {
			return fmt.Errorf("netns id of the node: %w", err)
		}
		return fn(id)
	})
}

// withHostEnds asks the plugin's own namespace for each link's other end.
func withHostEnds(links []podLink) []nodeapi.Interface {
	var out []nodeapi.Interface
	for _, l := range links {
		if l.peer != 0 && l.isPeerOf(l.peer) {
			l.HostIfindex = l.peer
		}
		out = append(out, l.Interface)
	}
	return out
}

// sameNamespace tells whether two paths lead to one network namespace. They may differ, by a symbolic link or by the
// process that /proc shows it through.
func sameNamespace(a, b string) bool {
	if a == b || !filepath.IsAbs(a) {
		return a == b && a != ""
	}
	var ids [2]netns.ID
	for i, path := range []string{a, b} {
		ns, err := netns.Open(path)
		if err != nil {
			return false
		}
		defer func() { _ = ns.Close() }() // not before both are known: an ID is unique only among the living
		if ids[i], err = ns.ID(); err != nil {
			return false
		}
	}
	return ids[0] == ids[1]
}

// distinct refuses a pod that lives in the plugin's own namespace. skel does too, but only after ADD has done its work.
func distinct(pod, host *netns.NS) error {
	a, err := pod.ID()
	if err != nil {
		return err
	}
	b, err := host.ID()
	if err == nil && a == b {
		err = errNodeNetns
	}
	return err
}

// podLink is an interface inside the pod.
type podLink struct {
	nodeapi.Interface
	ifindex int // inside the pod
	peer    int // ifindex of a veth's other end in the plugin's namespace, 0 if it is elsewhere
}

// podLinks runs inside the pod, where the plugin's own namespace is called nodeID.
func podLinks(interfaces []nodeapi.Interface, nodeID int) ([]podLink, error) {
	var out []podLink
	for _, i := range interfaces {
		link, err := netlink.LinkByName(i.Name)
		if err != nil {
			return nil, fmt.Errorf("interface %q of prevResult: %w", i.Name, err)
		}
		attrs := link.Attrs()
		if attrs.Flags&net.FlagLoopback != 0 {
			continue
		}
		l := podLink{Interface: i, ifindex: attrs.Index}
		if len(i.Addresses) == 0 {
			if l.Addresses, err = unicast(link); err != nil {
				return nil, fmt.Errorf("addresses of %q: %w", i.Name, err)
			}
		}
		if link.Type() == "veth" && nodeID >= 0 && attrs.NetNsID == nodeID {
			l.peer = attrs.ParentIndex
		}
		out = append(out, l)
	}
	return out, nil
}

// unicast returns the addresses of the link by which others may know the pod.
func unicast(link netlink.Link) ([]netip.Prefix, error) {
	list, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	var out []netip.Prefix
	for _, a := range list {
		if prefix, ok := prefixOf(*a.IPNet); ok && prefix.Addr().IsGlobalUnicast() {
			out = append(out, prefix)
		}
	}
	return out, err
}

// isPeerOf tells whether the host's link is a veth whose other end is l. Both ends must name each other: an ifindex
// alone is a small number that is taken in every namespace.
func (l podLink) isPeerOf(ifindex int) bool {
	link, err := netlink.LinkByIndex(ifindex)
	return err == nil && link.Type() == "veth" && link.Attrs().ParentIndex == l.ifindex
}

// names and hostEnds are the same list as the datapath wants it.
func names(interfaces []nodeapi.Interface) []string {
	var out []string
	for _, i := range interfaces {
		out = append(out, i.Name)
	}
	return out
}

func hostEnds(interfaces []nodeapi.Interface) []int {
	var out []int
	for _, i := range interfaces {
		if i.HostIfindex != 0 {
			out = append(out, i.HostIfindex)
		}
	}
	return out
}

// addresses adds those of the interfaces to known, each once.
func addresses(known []netip.Addr, lists ...[]nodeapi.Interface) []netip.Addr {
	all := slices.Clone(known)
	for _, list := range lists {
		for _, i := range list {
			for _, a := range i.Addresses {
				if addr := a.Addr().Unmap(); !slices.Contains(all, addr) {
					all = append(all, addr)
				}
			}
		}
	}
	return all
}
