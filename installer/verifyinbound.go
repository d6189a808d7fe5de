// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/bpf"
)

// checkHost tells what serves the node as a whole: above all whose probes the pod answers.
func (v *verifier) checkHost() {
	host, err := v.node.HostStatus()
	if err != nil {
		v.failed("probes", "%v", err)
		return
	}
	switch p := &host.Probe; {
	case p.Attached && p.Problem != "":
		v.failed("probes", "%s", p.Problem)
	case p.Attached && p.TrustsAll:
		v.ok("probes", "connections of every process of the host reach the app: kubelet has no cgroup of its own")
	case p.Attached:
		v.ok("probes", "connections of cgroup %s reach the app", p.Cgroup)
	case p.Problem != "":
		v.failed("probes", "%s: kubelet's probes meet the pod's policies, and fail under STRICT", p.Problem)
	default:
		v.skipped("probes", "switched off: kubelet's probes meet the pod's policies")
	}
	for _, h := range []struct {
		what, without string
		status        *bpf.HookStatus
	}{
		{"bind", "an app that binds without SO_REUSEADDR may find its address in use", &host.Bind},
		{"flows", "connections are not told of", &host.Flows},
	} {
		switch {
		case h.status.Attached && h.status.Problem == "":
			v.ok(h.what, "attached")
		case h.status.Problem != "":
			v.failed(h.what, "%s: %s", h.status.Problem, h.without)
		default:
			v.skipped(h.what, "switched off: %s", h.without)
		}
	}
}

// checkInbound connects to the pod's port for mutual TLS as a peer's ztunnel would, from the host. dispatch has to hand
// the connection to ztunnel, which shows the pod's certificate and then wants ours, which there is none: nothing but the
// beginning of a handshake is sent, and no app sees it.
func (v *verifier) checkInbound(ctx context.Context) {
	info := v.pod.Info()
	here, err := netnsCookie()
	for _, addr := range firstOfEachFamily(info.Addresses) {
		what := "inbound IPv4"
		if addr.Is6() {
			what = "inbound IPv6"
		}
		switch {
		case err != nil:
			v.failed(what, "%v", err)
		case info.HostCookie != here:
			v.skipped(what, "the pod has no end of a link in this network namespace: run this on the host")
		default:
			v.shakeHands(ctx, what, netip.AddrPortFrom(addr, bpf.HBONEPort))
		}
	}
}

func firstOfEachFamily(addrs []netip.Addr) (first []netip.Addr) {
	for _, is4 := range []bool{true, false} {
		for _, a := range addrs {
			if a.Is4() == is4 {
				first = append(first, a)
				break
			}
		}
	}
	return first
}

func (v *verifier) shakeHands(ctx context.Context, what string, to netip.AddrPort) {
	before, err := v.pod.Verdicts()
	if err != nil {
		v.failed(what, "%v", err)
		return
	}
	cert, err := certificateOf(ctx, to)
	after, verr := v.pod.Verdicts()
	switch {
	case verr != nil:
		v.failed(what, "%v", verr)
	case err != nil && after[bpf.VerdictDropNoListener] > before[bpf.VerdictDropNoListener]:
		v.failed(what, "connect to %v: refused, because no listener is in the slot: the agent fills it at its next resync", to)
	case err != nil && after[bpf.VerdictHBONE] == before[bpf.VerdictHBONE]:
		v.failed(what, "connect to %v: %v: dispatch did not see it; is there a route, and is dispatch attached?", to, err)
	case err != nil:
		v.failed(what, "connect to %v: handed to ztunnel's listener, but %v: is ztunnel running, and can it get the pod's certificate?", to, err)
	case after[bpf.VerdictHBONE] == before[bpf.VerdictHBONE]:
		v.failed(what, "connect to %v: somebody answered, but dispatch did not hand it to ztunnel", to)
	case time.Now().After(cert.NotAfter):
		v.failed(what, "ztunnel shows a certificate that expired %v: see its log, scope identity", cert.NotAfter.Format(time.RFC3339))
	case len(cert.URIs) != 1:
		v.failed(what, "ztunnel shows a certificate with the names %v, want one", cert.URIs)
	case v.identity != "" && cert.URIs[0].String() != v.identity:
		v.failed(what, "ztunnel answers as %v, and the pod is %s: it serves the pod under another's name; restart ztunnel, and see the agent's log", cert.URIs[0], v.identity)
	default:
		v.ok(what, "ztunnel answers as %v, valid until %v", cert.URIs[0], cert.NotAfter.Format(time.RFC3339))
	}
}

// certificateOf returns what a TLS server shows. Who signed it is for the peers' ztunnels to check: they have the root.
func certificateOf(ctx context.Context, to netip.AddrPort) (*x509.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, liveTimeout)
	defer cancel()
	d := tls.Dialer{
		NetDialer: &net.Dialer{FallbackDelay: -1},
		Config:    &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, InsecureSkipVerify: true}, //nolint:gosec // see above
	}
	d.NetDialer.SetMultipathTCP(false)
	conn, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0], nil
}

// netnsCookie identifies the network namespace that this program runs in.
func netnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Close(fd) }()
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("read cookie of network namespace: %w", err)
	}
	return cookie, nil
}
