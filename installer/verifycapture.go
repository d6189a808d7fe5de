// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net/netip"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/installer/listeners"
)

// checkCapture makes a connection from inside the pod, with a socket like any app's, to the address that ztunnel's
// listeners are bound to. It needs nobody else: ztunnel has that address in the set of destinations, so it is captured,
// and ztunnel itself refuses what is aimed at it.
//
// Where capture is broken nothing reaches anybody: no machine can have these addresses, routers discard them, guard drops
// them, and no byte is sent on the connection.
func (v *verifier) checkCapture(ctx context.Context) {
	for _, addr := range listeners.HiddenAddrs() {
		what := "capture IPv4"
		if addr.Is6() {
			what = "capture IPv6"
		}
		to := netip.AddrPortFrom(addr, bpf.HBONEPort)
		if why := v.whyNotCaptured(to); why != "" {
			v.skipped(what, "%s", why)
			continue
		}
		if err := v.findRoute(ctx, to); err != nil {
			v.skipped(what, "the pod has no route out: %v", err)
		} else if detail, err := v.connect(ctx, to); err != nil {
			v.failed(what, "%v", err)
		} else {
			v.ok(what, "%s", detail)
		}
	}
}

// findRoute asks for the pod's route by connecting a UDP socket, which sends nothing.
func (v *verifier) findRoute(ctx context.Context, to netip.AddrPort) error {
	conn, _, err := dialInside(ctx, "udp", v.pod.Info().NetnsPath, to)
	if err != nil {
		return err
	}
	return conn.Close()
}

// whyNotCaptured says why a connection to an address of ztunnel's is not expected to be captured; "" if it is.
func (v *verifier) whyNotCaptured(to netip.AddrPort) string {
	info := v.pod.Info()
	set := v.node.Destinations()
	complete, err := set.Complete()
	if err != nil {
		return err.Error()
	}
	member, err := set.Contains(to.Addr())
	switch {
	case err != nil:
		return err.Error()
	case !hasFamily(info.Addresses, to.Addr().Is4()):
		return "the pod has no address of this family"
	case info.Exclude.Covers(to):
		return "the pod's settings exclude " + to.String() + " from capture"
	case complete && !member && !info.CaptureAll:
		return "the set of destinations lacks " + to.Addr().String() + ": ztunnel is of another release"
	}
	return ""
}

func hasFamily(addrs []netip.Addr, is4 bool) bool {
	for _, a := range addrs {
		if a.Is4() == is4 {
			return true
		}
	}
	return false
}
