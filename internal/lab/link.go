// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/netns"
)

// end is one end of a veth pair.
type end struct {
	ns    string
	name  string
	addrs []netip.Prefix
}

// route leads to dst by way of via.
type route struct {
	dst netip.Prefix
	via netip.Addr
}

// In runs f on a thread inside the named namespace.
func In(ns string, f func() error) error {
	n, err := netns.Open(netns.NamedPath(ns))
	if err != nil {
		return err
	}
	defer n.Close()
	return n.Do(f)
}

// createNS makes a namespace whose lo is up, where IPv6 addresses are usable at once, and which says "unreachable"
// about everything it has no route for.
func createNS(name string) error {
	if _, err := netns.CreateNamed(name); err != nil {
		return err
	}
	return prepareNS(name)
}

// prepareNS sets up a namespace that is new.
func prepareNS(name string) error {
	return In(name, func() error {
		for _, key := range []string{"default", "all"} {
			if err := sysctl("net/ipv6/conf/"+key+"/accept_dad", "0"); err != nil {
				return err
			}
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
}

// sysctl sets a key in the calling thread's namespace.
func sysctl(key, value string) error {
	return os.WriteFile("/proc/sys/"+key, []byte(value), 0o644)
}

// connect makes a veth pair between two namespaces, addressed and up.
func connect(a, b end) error {
	peer, err := netns.Open(netns.NamedPath(b.ns))
	if err != nil {
		return err
	}
	defer peer.Close()
	err = In(a.ns, func() error {
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: a.name}, PeerName: b.name, PeerNamespace: netlink.NsFd(peer.FD())})
	})
	if err != nil {
		return fmt.Errorf("connect %s to %s: %w", a.ns, b.ns, err)
	}
	for _, e := range []end{a, b} {
		if err := In(e.ns, e.configure); err != nil {
			return fmt.Errorf("%s of %s: %w", e.name, e.ns, err)
		}
	}
	return nil
}

func (e end) configure() error {
	l, err := netlink.LinkByName(e.name)
	if err != nil {
		return err
	}
	for _, p := range e.addrs {
		a := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(l, a); err != nil {
			return fmt.Errorf("add address %s: %w", p, err)
		}
	}
	return netlink.LinkSetUp(l)
}

func addRoutes(ns string, routes ...route) error {
	return In(ns, func() error {
		for _, r := range routes {
			if err := netlink.RouteReplace(&netlink.Route{Dst: ipNet(r.dst), Gw: r.via.AsSlice()}); err != nil {
				return fmt.Errorf("%s: add route to %s via %s: %w", ns, r.dst, r.via, err)
			}
		}
		return nil
	})
}

// unreachable adds default routes that refuse: without them a mistake would show as a timeout.
func unreachable() error {
	for _, dst := range []string{"0.0.0.0/0", "::/0"} {
		r := &netlink.Route{Dst: ipNet(netip.MustParsePrefix(dst)), Type: unix.RTN_UNREACHABLE, Priority: 1 << 30}
		if err := netlink.RouteReplace(r); err != nil {
			return fmt.Errorf("add unreachable %s: %w", dst, err)
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
