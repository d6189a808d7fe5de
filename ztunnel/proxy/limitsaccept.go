// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/sluice-mesh/sluice/ztunnel/telemetry"
)

// acceptor is a listener of a pod and what becomes of its connections.
type acceptor struct {
	ln        *net.TCPListener
	direction telemetry.Direction
	costs     use
	carry     func(context.Context, *net.TCPConn, *lease)
	ready     func() // waits before each accept; nil does not
}

// acceptLoop accepts until the listener is closed. It outlives shortages: a process out of descriptors refuses what waits,
// and recovers when some are closed.
func (p *podProxy) acceptLoop(a acceptor) {
	for {
		if a.ready != nil {
			a.ready()
		}
		conn, err := a.ln.AcceptTCP()
		switch {
		case err == nil:
			p.accepted(a, conn)
		case isClosed(err):
			return
		default:
			if !p.short(a, err) {
				return
			}
		}
	}
}

// accepted has conn carried, if the pod may have one more.
func (p *podProxy) accepted(a acceptor, conn *net.TCPConn) {
	l, err := p.account.take(a.costs)
	if err != nil {
		src, dst := addrPort(conn.RemoteAddr()), addrPort(conn.LocalAddr())
		abort(conn)
		p.refuseForLimit(a.direction, src, dst, err)
		return
	}
	p.carrying.Go(func() {
		defer l.release()
		_ = p.TCP.Apply(conn)
		a.carry(p.ctx, conn, l)
	})
}

// acceptPause is between two tries to accept while something is short.
const acceptPause = 50 * time.Millisecond

// short handles an accept that failed, and waits before the next. It reports false when the pod is no longer served.
func (p *podProxy) short(a acceptor, err error) bool {
	if outOfDescriptors(err) {
		for _, from := range p.spare.refuse(a.ln) {
			p.refuseForLimit(a.direction, from, netip.AddrPort{}, fmt.Errorf("%w: %w", errLimit, err))
		}
	} else {
		p.log.Error("cannot accept", "listener", a.ln.Addr().String(), "error", err)
	}
	select {
	case <-time.After(acceptPause):
		return true
	case <-p.ctx.Done():
		return false
	}
}
