// SPDX-License-Identifier: Apache-2.0

package testutil

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/netns"
)

// End is one end of a veth pair: where it is, its name there, and its addresses with prefix length.
type End struct {
	NS    *NS
	Name  string
	Addrs []string // "10.77.0.1/24", "fd77::1/64"
}

// Veth joins two namespaces with a veth pair, both ends up and addressed. IPv6 addresses are usable at once.
func Veth(t testing.TB, a, b End) {
	t.Helper()
	a.NS.MustDo(t, func() error {
		peer, err := netns.Open(b.NS.Path)
		if err != nil {
			return err
		}
		defer peer.Close()
		err = netlink.LinkAdd(&netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: a.Name},
			PeerName:      b.Name,
			PeerNamespace: netlink.NsFd(peer.FD()),
		})
		if err != nil {
			return fmt.Errorf("add veth %s-%s: %w", a.Name, b.Name, err)
		}
		return nil
	})
	for _, end := range []End{a, b} {
		end.NS.MustDo(t, func() error { return configure(end.Name, end.Addrs) })
	}
}

// configure adds the addresses and sets the link up.
func configure(name string, addrs []string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("link %q: %w", name, err)
	}
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return fmt.Errorf("address %q: %w", a, err)
		}
		if addr.IP.To4() == nil {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(l, addr); err != nil {
			return fmt.Errorf("add address %s to %s: %w", a, name, err)
		}
	}
	return netlink.LinkSetUp(l)
}

// Route adds a route through a link of the namespace; via may be the zero Addr for "on link".
func (n *NS) Route(t testing.TB, dst netip.Prefix, via netip.Addr, dev string) {
	t.Helper()
	args := []string{"route", "replace", dst.String()}
	if via.IsValid() {
		args = append(args, "via", via.String())
	}
	n.Run(t, "ip", append(args, "dev", dev)...)
}
