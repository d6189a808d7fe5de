// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/sluice-mesh/sluice/ztunnel/discovery"
	"github.com/sluice-mesh/sluice/ztunnel/identity"
)

// tunnelled turns a delivery into what the application's tunnel wants, ambient section 4.4. to is where it would go
// without.
func (r *router) tunnelled(d *delivery, tunnel *discovery.Tunnel, authority string, to netip.AddrPort) (*delivery, error) {
	d.to, d.header = to, tunnel.Proxy
	if tunnel.Port != 0 {
		d.to = netip.AddrPortFrom(to.Addr(), tunnel.Port)
	}
	if r.isReserved(d.to.Port()) {
		return nil, reject(statusUnavailable, VerdictReservedPort, "port %d is ztunnel's own", d.to.Port())
	}
	if d.header && !d.asked.Addr().IsValid() {
		return nil, reject(statusUnavailable, VerdictAppTunnel, "authority %q: the service has no address to name in a PROXY header", authority)
	}
	return d, nil
}

// addressOf is the address by which svc is named to an application: on this network if it has one there, IPv4 if it has
// one. Invalid for a service without addresses.
func (r *router) addressOf(svc *discovery.Service) (best netip.Addr) {
	rank := -1
	for _, vip := range svc.VIPs {
		is := 0
		if vip.Network == r.network {
			is += 2
		}
		if vip.Addr.Is4() {
			is++
		}
		if is > rank {
			best, rank = vip.Addr, is
		}
	}
	return best
}

// connectApp connects to where d goes: as if the client did, or over loopback if the application takes the client's
// address from a header and so may listen there only.
func (p *podProxy) connectApp(ctx context.Context, from netip.Addr, d *delivery) (*net.TCPConn, error) {
	if !d.header || !p.LocalhostAppTunnel {
		return p.deliver(ctx, from, d.to)
	}
	loopback := netip.IPv6Loopback()
	if d.to.Addr().Is4() {
		loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	app, err := p.network.Dial(ctx, netip.Addr{}, netip.AddrPortFrom(loopback, d.to.Port()))
	if err != nil {
		return nil, refuse(connectVerdict(err), "deliver: %w", err)
	}
	return app, nil
}

// introduce tells the application who connects, before any data.
func (p *podProxy) introduce(app *net.TCPConn, d *delivery, from netip.AddrPort, id identity.Identity) error {
	if !d.header {
		return nil
	}
	var peer string
	if id != (identity.Identity{}) {
		peer = id.String()
	}
	if _, err := app.Write(proxyHeader(from, d.asked, peer)); err != nil {
		return refuse(VerdictConnect, "PROXY header: %w", err)
	}
	return nil
}

// proxyTLVIdentity is the type of the field with the client's SPIFFE URI.
const proxyTLVIdentity = 0xD0

// proxyHeader is a header of the PROXY protocol, version 2, for a TCP connection; peer may be "". An IPv4 address beside
// an IPv6 one is written as IPv4-mapped, as a header has one family.
func proxyHeader(src, dst netip.AddrPort, peer string) []byte {
	const proxyCommand, tcp4, tcp6 = 0x21, 0x11, 0x21
	h := append([]byte("\r\n\r\n\x00\r\nQUIT\n"), proxyCommand, tcp4, 0, 0)
	if src.Addr().Is4() && dst.Addr().Is4() {
		h = append(append(h, src.Addr().AsSlice()...), dst.Addr().AsSlice()...)
	} else {
		from, to := src.Addr().As16(), dst.Addr().As16()
		h = append(append(h, from[:]...), to[:]...)
		h[13] = tcp6
	}
	h = binary.BigEndian.AppendUint16(h, src.Port())
	h = binary.BigEndian.AppendUint16(h, dst.Port())
	if peer != "" {
		h = append(h, proxyTLVIdentity)
		h = binary.BigEndian.AppendUint16(h, uint16(len(peer)))
		h = append(h, peer...)
	}
	binary.BigEndian.PutUint16(h[14:], uint16(len(h)-16))
	return h
}
