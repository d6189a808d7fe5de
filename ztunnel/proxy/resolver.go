// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"net"
	"net/netip"

	"github.com/sluice-mesh/sluice/ztunnel/discovery"
	"github.com/sluice-mesh/sluice/ztunnel/inpod"
)

// Client is a pod being served, for what asks on its behalf: its resolver.
type Client struct{ pod *podProxy }

// ClientOf returns the client that a Proxy of [Proxy.Serve] is.
func ClientOf(p inpod.Proxy) Client { return Client{p.(*podProxy)} }

// Workload returns the pod's own workload, and waits a little for one that is not known yet.
func (c Client) Workload(ctx context.Context) (*discovery.Workload, error) { return c.pod.self(ctx) }

// Reserve takes descriptors of the pod's share until release is called.
func (c Client) Reserve(descriptors int) (release func(), err error) {
	l, err := c.pod.account.take(use{descriptors: descriptors})
	if err != nil {
		return nil, err
	}
	return l.release, nil
}

// Shed resets what waits at ln if err, of an accept, is for want of descriptors, and tells how many that were.
func (c Client) Shed(ln *net.TCPListener, err error) (reset int) {
	if !outOfDescriptors(err) {
		return 0
	}
	return len(c.pod.spare.refuse(ln))
}

// Dial connects as a connection of the pod's to the same address is carried: to members of the mesh in mutual TLS, and
// never in clear. from is who asked, for the peer to know.
func (c Client) Dial(ctx context.Context, from, to netip.AddrPort) (net.Conn, error) {
	src, err := c.pod.self(ctx)
	if err != nil {
		return nil, err
	}
	route, err := c.pod.router.outbound(src, to)
	if err == nil {
		err = c.pod.resolve(ctx, src, route, to.Addr())
	}
	if err != nil {
		return nil, err
	}
	if route.carried != VerdictMTLS {
		return c.pod.network.Dial(ctx, netip.Addr{}, route.dial)
	}
	stream, _, err := c.pod.connectHBONE(ctx, src, from, route)
	if err != nil {
		return nil, err
	}
	return stream, nil
}
