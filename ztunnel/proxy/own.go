// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"net"
	"net/netip"
	"slices"

	"github.com/sluice-mesh/sluice/ztunnel/inpod"
)

// ServeOwn serves ports of ztunnel's own pod to peers that come over HBONE, ambient section 1.1: its pages, so that they
// are scraped in mutual TLS. Policies for the pod's workload hold. l has HBONE listeners only, in this process's namespace.
func (p *Proxy) ServeOwn(info inpod.Info, l *inpod.Listeners, ports []uint16) inpod.Proxy {
	return p.serve(info, ownNetwork{}, l, ports...)
}

// offers refuses what is not for peers. A pod offers all its ports.
func (p *podProxy) offers(d *delivery) error {
	if len(p.ports) == 0 || slices.Contains(p.ports, d.to.Port()) {
		return nil
	}
	return reject(statusUnavailable, VerdictReservedPort, "port %d of ztunnel's own pod is not for peers", d.to.Port())
}

// ownNetwork is that of this process. It disguises nothing: here, nobody would bring the answers back.
type ownNetwork struct{}

func (ownNetwork) Dial(ctx context.Context, _ netip.Addr, to netip.AddrPort) (*net.TCPConn, error) {
	var d net.Dialer
	d.SetMultipathTCP(false)
	conn, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

func (n ownNetwork) Deliver(ctx context.Context, _ netip.Addr, to netip.AddrPort, _ inpod.Avoid) (*net.TCPConn, error) {
	return n.Dial(ctx, netip.Addr{}, to)
}
