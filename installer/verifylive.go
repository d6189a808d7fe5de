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
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/internal/netns"
)

const (
	// liveTimeout bounds a live connection: ztunnel's dial to the peer is in it.
	liveTimeout = 5 * time.Second
	// maxPeers is how many peers are tried before the fault is taken to be this side's.
	maxPeers = 3
)

// checkLive makes a connection from inside the pod with a socket like any app's.
//
// It goes to port 15008 of another workload of the mesh. Where capture works, ztunnel takes it and asks the peer's
// ztunnel, in mutual TLS, for port 15008 of its pod, which every ztunnel refuses: the whole way is used, and no app is
// disturbed. Where capture is broken the connection reaches the peer's listener for mutual TLS itself, to which nothing
// is sent: either way not a byte leaves in clear.
func (v *verifier) checkLive(ctx context.Context) {
	for _, is4 := range []bool{true, false} {
		what := "live IPv6"
		if is4 {
			what = "live IPv4"
		}
		if !slices.ContainsFunc(v.pod.Info().Addresses, func(a netip.Addr) bool { return a.Is4() == is4 }) {
			v.skipped(what, "the pod has no %s address", what[len("live "):])
			continue
		}
		v.checkFamily(ctx, what, is4)
	}
}

func (v *verifier) checkFamily(ctx context.Context, what string, is4 bool) {
	info := v.pod.Info()
	all, err := targets(v.view, &info, is4)
	if err != nil {
		v.skipped(what, "%v", err)
		return
	}
	var errs []string
	for _, to := range all {
		detail, err := v.connect(ctx, to)
		if err == nil {
			v.ok(what, "%s", detail)
			return
		}
		errs = append(errs, err.Error())
		if !errors.Is(err, errPeer) {
			break // the next peer would fare no better
		}
	}
	v.failed(what, "%s", strings.Join(errs, "; "))
}

// targets are where to connect to, the best first.
func targets(view *meshView, info *bpf.PodInfo, is4 bool) ([]netip.AddrPort, error) {
	if view == nil {
		return nil, errors.New("ztunnel does not say which workloads there are")
	}
	var good, other []netip.AddrPort
	for _, w := range view.Workloads {
		for _, a := range w.Addresses {
			to := netip.AddrPortFrom(a, bpf.HBONEPort)
			switch {
			case w.Protocol != "HBONE", a.Is4() != is4, slices.Contains(info.Addresses, a), info.Exclude.Covers(to):
			case w.Status == "Unhealthy" || w.Waypoint != nil:
				other = append(other, to)
			default:
				good = append(good, to)
			}
		}
	}
	all := append(good, other...)
	if len(all) == 0 {
		return nil, errors.New("there is no other workload in the mesh to connect to: enrol a second pod")
	}
	return all[:min(len(all), maxPeers)], nil
}

// errPeer says that capture worked, but the way to the peer did not.
var errPeer = errors.New("captured")

// connect opens the connection and says how it went.
func (v *verifier) connect(ctx context.Context, to netip.AddrPort) (detail string, err error) {
	before, err := v.pod.Verdicts()
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, liveTimeout)
	defer cancel()
	conn, local, err := dialInside(ctx, "tcp", v.pod.Info().NetnsPath, to)
	// A reset, unlike a refusal, comes from somebody who took the connection: ztunnel may be done with it before we know
	// that it is open.
	wasReset := errors.Is(err, unix.ECONNRESET)
	if err != nil && !wasReset {
		return "", v.refused(to, before, err)
	}
	if conn != nil {
		defer func() { _ = conn.Close() }()
	}
	after, err := v.pod.Verdicts()
	if err != nil {
		return "", err
	}
	if after[bpf.VerdictCaptured] == before[bpf.VerdictCaptured] {
		return "", fmt.Errorf("connect to %v: it was NOT CAPTURED, and would have gone in clear (no byte was sent on it): see the lines links and rule", to)
	}
	if after[bpf.VerdictOutbound] == before[bpf.VerdictOutbound] {
		return "", fmt.Errorf("connect to %v: captured, but not handed to the outbound listener", to)
	}
	if !wasReset && !endsBy(ctx, conn) {
		return "", fmt.Errorf("connect to %v: %w, but no ztunnel answered within %v: is the peer's node reachable at port 15008?", to, errPeer, liveTimeout)
	}
	return v.outcome(ctx, local, to)
}

// endsBy reports whether the other side ends the connection before ctx does.
func endsBy(ctx context.Context, conn net.Conn) bool {
	deadline, _ := ctx.Deadline()
	_ = conn.SetReadDeadline(deadline)
	_, err := conn.Read(make([]byte, 1))
	return !errors.Is(err, os.ErrDeadlineExceeded)
}

// outcome asks ztunnel what became of the connection from the port local.
func (v *verifier) outcome(ctx context.Context, local uint16, to netip.AddrPort) (string, error) {
	began := time.Now().Add(-liveTimeout)
	own := v.pod.Info().Addresses
	for ; ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
		var list []endedConn
		if err := v.ztunnel.get(ctx, "/debug/connections", &list); err != nil {
			return "", err
		}
		for _, c := range slices.Backward(list) {
			switch {
			case c.Src.Port() != local || !slices.Contains(own, c.Src.Addr().Unmap()) || c.Direction != "outbound" || c.At.Before(began):
			case c.Verdict == "refused-hidden-address":
				return "captured, handed to ztunnel, and refused there as it must be", nil
			case c.Verdict == "refused-by-peer":
				return fmt.Sprintf("captured, carried in mutual TLS to %s at %v, and refused there as it must be", or(c.DstIdentity, "the peer"), to), nil
			default:
				return "", fmt.Errorf("%w, but ztunnel could not reach %v: %s: %s", errPeer, to, c.Verdict, c.Error)
			}
		}
	}
	return "", fmt.Errorf("captured, but ztunnel has no record of the connection to %v", to)
}

// refused says how far a connection came that did not open.
func (v *verifier) refused(to netip.AddrPort, before map[bpf.Verdict]uint64, err error) error {
	after, verr := v.pod.Verdicts()
	if verr != nil {
		return errors.Join(err, verr)
	}
	for _, step := range []struct {
		verdict bpf.Verdict
		text    string
	}{
		{bpf.VerdictDropNoListener, "it was captured, but the pod's slot is empty: see the line listeners"},
		{bpf.VerdictOutbound, "it was captured and handed to ztunnel's listener, but no ztunnel took it"},
		{bpf.VerdictCaptured, "it was captured, but did not come back into the pod: see the lines route, rule and sysctl"},
	} {
		if after[step.verdict] > before[step.verdict] {
			return fmt.Errorf("connect to %v: %w: %s", to, err, step.text)
		}
	}
	return fmt.Errorf("connect to %v: %w: it was NOT CAPTURED: see the line links", to, err)
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// dialInside connects from a network namespace, by one family and without MPTCP. The local port is known also if that
// fails.
func dialInside(ctx context.Context, network, path string, to netip.AddrPort) (conn net.Conn, local uint16, err error) {
	ns, err := netns.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = ns.Close() }()
	d := net.Dialer{FallbackDelay: -1, Control: func(_, _ string, c syscall.RawConn) error {
		var bindErr error
		err := c.Control(func(fd uintptr) { local, bindErr = bindAny(int(fd), to.Addr().Is4()) })
		return errors.Join(err, bindErr)
	}}
	d.SetMultipathTCP(false)
	err = ns.Do(func() (err error) {
		conn, err = d.DialContext(ctx, network, to.String())
		return err
	})
	return conn, local, err
}

// bindAny has the kernel choose the socket's port now. The address it chooses when the socket connects.
func bindAny(fd int, is4 bool) (port uint16, err error) {
	var unbound unix.Sockaddr = &unix.SockaddrInet6{}
	if is4 {
		unbound = &unix.SockaddrInet4{}
	}
	if err := unix.Bind(fd, unbound); err != nil {
		return 0, fmt.Errorf("bind: %w", err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return 0, fmt.Errorf("getsockname: %w", err)
	}
	switch name := name.(type) {
	case *unix.SockaddrInet4:
		return uint16(name.Port), nil
	case *unix.SockaddrInet6:
		return uint16(name.Port), nil
	}
	return 0, fmt.Errorf("getsockname: %T", name)
}
