// SPDX-License-Identifier: Apache-2.0

package running

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-mesh/sluice/internal/netns"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

// link is an interface inside a namespace; peer is the ifindex of a veth's other end on the node, or 0.
type link struct {
	nodeapi.Interface
	ifindex, peer int
}

// verify returns the interfaces of the namespace at path if it is the pod's: it is not the node's, and has every address
// that the API knows of the pod.
func verify(p *corev1.Pod, path string) ([]nodeapi.Interface, error) {
	wanted, err := addressesOf(p)
	if err != nil {
		return nil, err
	}
	ns, err := netns.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = ns.Close() }()
	host, err := netns.Current()
	if err != nil {
		return nil, err
	}
	defer func() { _ = host.Close() }()
	a, aerr := ns.ID()
	b, berr := host.ID()
	if err := errors.Join(aerr, berr); err != nil {
		return nil, err
	}
	if a == b {
		return nil, fmt.Errorf("netns %q is the node's", path)
	}
	var links []link
	err = ns.Do(func() (err error) {
		links, err = linksHere(host.FD(), wanted)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("netns %q: %w", path, err)
	}
	var found []netip.Addr
	out := make([]nodeapi.Interface, 0, len(links))
	for _, l := range links {
		for _, addr := range l.Addresses {
			found = append(found, addr.Addr())
		}
		out = append(out, l.withHostEnd())
	}
	for _, addr := range wanted {
		if !slices.Contains(found, addr) {
			return nil, fmt.Errorf("netns %q does not have the pod's address %v", path, addr)
		}
	}
	return out, nil
}

func addressesOf(p *corev1.Pod) ([]netip.Addr, error) {
	texts := []string{p.Status.PodIP}
	for _, ip := range p.Status.PodIPs {
		texts = append(texts, ip.IP)
	}
	var all []netip.Addr
	for _, text := range texts {
		addr, err := netip.ParseAddr(text)
		if text == "" {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("address of pod: %w", err)
		}
		if addr = addr.Unmap(); !slices.Contains(all, addr) {
			all = append(all, addr)
		}
	}
	if len(all) == 0 {
		return nil, errors.New("the API knows no address of the pod yet")
	}
	return all, nil
}

// linksHere runs inside the pod. Told are the links with the addresses that the API knows, and those of further networks,
// of which no address is told: they have one, and the runtime made them, as they lead to the node or are devices. The
// pod's own tunnels and bridges are left alone.
func linksHere(hostFD int, wanted []netip.Addr) ([]link, error) {
	nodeID, err := netlink.GetNetNsIdByFd(hostFD)
	if err != nil {
		return nil, fmt.Errorf("netns id of the node: %w", err)
	}
	all, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var out []link
	for _, l := range all {
		attrs := l.Attrs()
		if attrs.Flags&net.FlagLoopback != 0 {
			continue
		}
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return nil, fmt.Errorf("addresses of %q: %w", attrs.Name, err)
		}
		i := link{Interface: nodeapi.Interface{Name: attrs.Name}, ifindex: attrs.Index}
		leadsOut := false
		for _, a := range addrs {
			leadsOut = leadsOut || a.Scope == int(netlink.SCOPE_UNIVERSE)
			addr, _ := netip.AddrFromSlice(a.IP)
			if addr = addr.Unmap(); slices.Contains(wanted, addr) {
				ones, _ := a.Mask.Size()
				i.Addresses = append(i.Addresses, netip.PrefixFrom(addr, ones))
			}
		}
		toNode := nodeID >= 0 && attrs.NetNsID == nodeID
		if len(i.Addresses) == 0 && !(leadsOut && (toNode || l.Type() == "device")) {
			continue
		}
		if l.Type() == "veth" && toNode {
			i.peer = attrs.ParentIndex
		}
		out = append(out, i)
	}
	return out, nil
}

// withHostEnd runs on the node. Both ends must name each other: an ifindex alone is a small number that is taken in
// every namespace.
func (l link) withHostEnd() nodeapi.Interface {
	if l.peer == 0 {
		return l.Interface
	}
	other, err := netlink.LinkByIndex(l.peer)
	if err == nil && other.Type() == "veth" && other.Attrs().ParentIndex == l.ifindex {
		l.HostIfindex = l.peer
	}
	return l.Interface
}
