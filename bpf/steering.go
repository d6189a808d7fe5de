// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What leads a bounced packet to a local socket, besides the programs: one rule and one route per family in the pod,
// and lo accepting the pod's own addresses as sources. Docs and `ip` show the numbers.
const (
	SteeringMark     = uint32(captureSteeringSTEERING_MARK)  // of bounced packets
	SteeringMask     = uint32(captureSteeringSTEERING_MASK)  // the bits of the mark that the rule looks at
	SteeringPriority = int(captureSteeringSTEERING_PRIORITY) // of the ip rule
	SteeringTable    = int(captureSteeringSTEERING_TABLE)    // of the route
	HBONEPort        = uint16(captureSteeringSTEERING_HBONE_PORT)

	loopbackIfindex = int(captureSteeringSTEERING_LOOPBACK_IFINDEX)
)

// Sysctls of the network namespace of the thread that opens them.
const (
	acceptLocalPath = "/proc/sys/net/ipv4/conf/lo/accept_local"
	disableIPv6Path = "/proc/sys/net/ipv6/conf/all/disable_ipv6"
)

// The functions below work on the calling thread's network namespace.

// families lists the pod's IP families. IPv6 may be off, or not in the kernel at all.
func families() []int {
	if ipv6IsOn() {
		return []int{unix.AF_INET, unix.AF_INET6}
	}
	return []int{unix.AF_INET}
}

func ipv6IsOn() bool {
	off, err := os.ReadFile(disableIPv6Path)
	return err == nil && strings.TrimSpace(string(off)) == "0"
}

func loopbackIsOpen() (bool, error) {
	value, err := os.ReadFile(acceptLocalPath)
	return strings.TrimSpace(string(value)) == "1", err
}

// steer sets everything up. Doing it again repairs what is missing.
func steer() error {
	if err := setLoopbackUp(); err != nil {
		return err
	}
	if err := writeSysctl(acceptLocalPath, "1"); err != nil {
		return fmt.Errorf("set accept_local of lo: %w", err)
	}
	for _, family := range families() {
		if err := netlink.RouteReplace(steeringRoute(family)); err != nil {
			return fmt.Errorf("add %s route: %w", familyName(family), err)
		}
		if err := netlink.RuleAdd(steeringRule(family)); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add %s rule: %w", familyName(family), err)
		}
	}
	return nil
}

// unsteer takes everything away. What is not there is no error.
func unsteer(loopbackWasOpen bool) error {
	var errs []error
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		if err := netlink.RuleDel(steeringRule(family)); err != nil && !isGone(err) {
			errs = append(errs, fmt.Errorf("delete %s rule: %w", familyName(family), err))
		}
		if err := netlink.RouteDel(steeringRoute(family)); err != nil && !isGone(err) {
			errs = append(errs, fmt.Errorf("delete %s route: %w", familyName(family), err))
		}
	}
	if !loopbackWasOpen {
		if err := writeSysctl(acceptLocalPath, "0"); err != nil {
			errs = append(errs, fmt.Errorf("reset accept_local of lo: %w", err))
		}
	}
	return errors.Join(errs...)
}

// checkSteering names everything that is not as steer leaves it.
func checkSteering(ipv6 bool) error {
	var errs []error
	lo, err := netlink.LinkByIndex(loopbackIfindex)
	if err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	if lo.Attrs().Flags&net.FlagUp == 0 {
		errs = append(errs, errors.New("lo is down"))
	}
	open, err := loopbackIsOpen()
	if err != nil {
		errs = append(errs, err)
	} else if !open {
		errs = append(errs, errors.New("net.ipv4.conf.lo.accept_local is 0, want 1"))
	}
	wanted := []int{unix.AF_INET}
	if ipv6 {
		wanted = append(wanted, unix.AF_INET6)
	}
	for _, family := range wanted {
		errs = append(errs, checkRule(family), checkRoute(family))
	}
	return errors.Join(errs...)
}

func checkRule(family int) error {
	want := steeringRule(family)
	rules, err := netlink.RuleListFiltered(family, want, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PRIORITY)
	if err != nil {
		return fmt.Errorf("list %s rules: %w", familyName(family), err)
	}
	for _, r := range rules {
		if r.Mark == want.Mark && r.Mask != nil && *r.Mask == *want.Mask {
			return nil
		}
	}
	return fmt.Errorf("no %s rule %d: fwmark %#x/%#x lookup %d", familyName(family),
		want.Priority, want.Mark, *want.Mask, want.Table)
}

func checkRoute(family int) error {
	want := steeringRoute(family)
	routes, err := netlink.RouteListFiltered(family, want, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE|netlink.RT_FILTER_OIF)
	if err != nil {
		return fmt.Errorf("list %s routes: %w", familyName(family), err)
	}
	for _, r := range routes {
		if r.Dst == nil || r.Dst.String() == want.Dst.String() {
			return nil
		}
	}
	return fmt.Errorf("no %s route: local default dev lo table %d", familyName(family), want.Table)
}

func steeringRule(family int) *netlink.Rule {
	mask := SteeringMask
	r := netlink.NewRule()
	r.Family = family
	r.Priority = SteeringPriority
	r.Mark, r.Mask = SteeringMark, &mask
	r.Table = SteeringTable
	return r
}

func steeringRoute(family int) *netlink.Route {
	everything := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	if family == unix.AF_INET6 {
		everything = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	}
	return &netlink.Route{
		LinkIndex: loopbackIfindex,
		Family:    family,
		Dst:       everything,
		Type:      unix.RTN_LOCAL,
		Scope:     unix.RT_SCOPE_HOST,
		Table:     SteeringTable,
	}
}

// setLoopbackUp does what the runtime's loopback plugin should have done: packets bounced to a lo that is down are lost.
func setLoopbackUp() error {
	lo, err := netlink.LinkByIndex(loopbackIfindex)
	if err == nil && lo.Attrs().Flags&net.FlagUp == 0 {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}

// isGone covers what the kernel says of rules and routes that do not exist, IPv6 being absent included.
func isGone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EAFNOSUPPORT) ||
		errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENODEV)
}

func familyName(family int) string {
	if family == unix.AF_INET6 {
		return "IPv6"
	}
	return "IPv4"
}
