// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/internal/netns"
)

// liveTimeout bounds the live connection: ztunnel's dial to the peer is in it.
const liveTimeout = 10 * time.Second

// checkLive makes a connection from inside the pod with a socket like any app's.
//
// It goes to port 15008 of another workload of the mesh. Where capture works, ztunnel takes it and asks the peer's
// ztunnel, in mutual TLS, for port 15008 of its pod, which every ztunnel refuses: the whole way is used, and no app is
// disturbed. Where capture is broken the connection reaches the peer's listener for mutual TLS itself, to which nothing
// is sent: either way not a byte leaves in clear.
func (v *verifier) checkLive(ctx context.Context) {
	info := v.pod.Info()
	for _, family := range []string{"IPv4", "IPv6"} {
		what := "live " + family
		if !slices.ContainsFunc(info.Addresses, func(a netip.Addr) bool { return a.Is4() == (family == "IPv4") }) {
			v.skipped(what, "the pod has no %s address", family)
			continue
		}
		peer, err := v.peer(family == "IPv4")
		if err != nil {
			v.skipped(what, "%v", err)
			continue
		}
		if detail, err := v.connect(ctx, netip.AddrPortFrom(peer, bpf.HBONEPort)); err != nil {
			v.failed(what, "%v", err)
		} else {
			v.ok(what, "%s", detail)
		}
	}
}

// peer finds another workload that speaks HBONE.
func (v *verifier) peer(ipv4 bool) (netip.Addr, error) {
	if v.view == nil {
		return netip.Addr{}, errors.New("ztunnel does not say which workloads there are")
	}
	for _, w := range v.view.Workloads {
		for _, a := range w.Addresses {
			if w.Protocol == "HBONE" && a.Is4() == ipv4 && !slices.Contains(v.pod.Info().Addresses, a) {
				return a, nil
			}
		}
	}
	return netip.Addr{}, errors.New("there is no other workload in the mesh to connect to")
}

// connect opens the connection and says how it went.
func (v *verifier) connect(ctx context.Context, to netip.AddrPort) (detail string, err error) {
	before, err := v.pod.Verdicts()
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, liveTimeout)
	defer cancel()
	conn, err := dialInside(ctx, v.pod.Info().NetnsPath, to)
	if err != nil {
		return "", fmt.Errorf("connect to %v: %w: no listener of ztunnel took it", to, err)
	}
	defer func() { _ = conn.Close() }()
	after, err := v.pod.Verdicts()
	if err != nil {
		return "", err
	}
	if after[bpf.VerdictCaptured] == before[bpf.VerdictCaptured] {
		return "", fmt.Errorf("connect to %v: it was not captured (no byte was sent on it)", to)
	}
	if after[bpf.VerdictOutbound] == before[bpf.VerdictOutbound] {
		return "", fmt.Errorf("connect to %v: captured, but not handed to the outbound listener", to)
	}
	deadline, _ := ctx.Deadline()
	_ = conn.SetReadDeadline(deadline)
	if _, err := conn.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		return "", fmt.Errorf("connect to %v: captured, but no ztunnel answered within %v", to, liveTimeout)
	}
	return v.outcome(ctx, conn.LocalAddr().(*net.TCPAddr).AddrPort(), to)
}

// outcome asks ztunnel what became of the connection.
func (v *verifier) outcome(ctx context.Context, local, to netip.AddrPort) (string, error) {
	local = netip.AddrPortFrom(local.Addr().Unmap(), local.Port())
	for ; ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
		var list []endedConn
		if err := admin(ctx, v.adminAddress, "/debug/connections", &list); err != nil {
			return "", err
		}
		for _, c := range slices.Backward(list) {
			switch {
			case c.Src != local || c.Direction != "outbound":
			case c.Verdict == "refused-by-peer":
				return fmt.Sprintf("captured, carried in mutual TLS to %s at %v, and refused there as it must be", or(c.DstIdentity, "the peer"), to), nil
			default:
				return "", fmt.Errorf("captured, but ztunnel could not reach %v: %s: %s", to, c.Verdict, c.Error)
			}
		}
	}
	return "", fmt.Errorf("captured, but ztunnel has no record of the connection to %v", to)
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// dialInside connects from a network namespace, by one family and plain TCP.
func dialInside(ctx context.Context, path string, to netip.AddrPort) (conn net.Conn, err error) {
	ns, err := netns.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = ns.Close() }()
	d := net.Dialer{FallbackDelay: -1}
	d.SetMultipathTCP(false)
	err = ns.Do(func() (err error) {
		conn, err = d.DialContext(ctx, "tcp", to.String())
		return err
	})
	return conn, err
}
