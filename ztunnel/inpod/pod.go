// SPDX-License-Identifier: Apache-2.0

package inpod

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/sluice-mesh/sluice/internal/netns"
)

// Info is who a pod is. It comes from the agent, which bound it to the namespace when the pod was made.
type Info struct {
	// UID is Kubernetes' UID of the pod, not the one of xDS.
	UID            string
	Name           string
	Namespace      string
	ServiceAccount string
}

// String is the pod's name for logs.
func (i Info) String() string { return i.Namespace + "/" + i.Name }

// Pod is a pod that ztunnel was asked to serve, with its network namespace open.
type Pod struct {
	Info
	// ID is the namespace's; the same UID in another namespace is another pod.
	ID netns.ID

	ns      *netns.NS
	sockets *Sockets
	answers answers

	spares4, spares6 spares
}

// NewPod wraps the network namespace fd, and takes ownership of it, also on error.
func NewPod(info Info, fd int, sockets *Sockets) (*Pod, error) {
	ns, err := netns.FromFD(fd)
	if err != nil {
		return nil, err
	}
	id, err := ns.ID()
	if err != nil {
		_ = ns.Close()
		return nil, err
	}
	return &Pod{Info: info, ID: id, ns: ns, sockets: sockets}, nil
}

// Dial connects from inside the pod with its address from; the zero address leaves the choice to the kernel, and so does
// one of the other family.
func (p *Pod) Dial(ctx context.Context, from netip.Addr, to netip.AddrPort) (*net.TCPConn, error) {
	from = from.Unmap()
	if from.IsValid() && from.Is4() != to.Addr().Is4() {
		from = netip.Addr{}
	}
	return p.dial(ctx, from, to)
}

// Deliver connects from inside the pod with the address from, which the pod need not own, and with no source that avoid
// refuses. If from is the destination itself, the pod's own address is used: a connection from an address to itself
// needs no disguise. The same goes for all if the [Options] say OwnSource.
func (p *Pod) Deliver(ctx context.Context, from netip.Addr, to netip.AddrPort, avoid Avoid) (*net.TCPConn, error) {
	from = from.Unmap()
	if from == to.Addr() || p.sockets.options.OwnSource {
		return p.dial(ctx, netip.Addr{}, to)
	}
	if from.Is4() != to.Addr().Is4() {
		return nil, fmt.Errorf("dial %s from %s: different address families", to, from)
	}
	return p.deliver(ctx, from, to, avoid)
}

// close lets go of the namespace. Connections made in it stay open.
func (p *Pod) close() {
	p.answers.close()
	p.spares4.close()
	p.spares6.close()
	_ = p.ns.Close()
}

// Listeners are a pod's listening sockets by role, one or two (IPv4, IPv6) each. Who holds them closes them.
type Listeners struct {
	Outbound []*net.TCPListener
	Inbound  []*net.TCPListener
	HBONE    []*net.TCPListener
	// DNSUDP and DNSTCP are there if the pod's queries are captured. A datagram comes with where it was to go.
	DNSUDP []*net.UDPConn
	DNSTCP []*net.TCPListener
	// Shared means that others hold the same sockets and go on accepting after Close. Otherwise closing resets what
	// still waits in the accept queue.
	Shared bool
}

// All lists every socket that accepts connections, outbound first.
func (l *Listeners) All() []*net.TCPListener {
	return slices.Concat(l.Outbound, l.Inbound, l.HBONE, l.DNSTCP)
}

// Close closes this process's copies; it never shuts a socket down.
func (l *Listeners) Close() {
	for _, ln := range l.All() {
		_ = ln.Close()
	}
	for _, c := range l.DNSUDP {
		_ = c.Close()
	}
}
