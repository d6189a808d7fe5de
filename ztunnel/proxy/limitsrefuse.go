// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/ztunnel/telemetry"
)

// refusals bounds the log of what is refused for want of room: one line a second, with the number of those left out. Each
// is counted in the metric. The zero value is ready.
type refusals struct {
	mu     sync.Mutex
	logged time.Time
	silent int
}

// due reports whether to log now, and how many were not logged since the last time.
func (r *refusals) due() (silent int, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := time.Now(); now.Sub(r.logged) >= time.Second {
		silent, r.silent, r.logged = r.silent, 0, now
		return silent, true
	}
	r.silent++
	return 0, false
}

// refuseForLimit counts a connection that was turned away, and logs it if that is due. Addresses may be unknown.
func (p *podProxy) refuseForLimit(d telemetry.Direction, src, dst netip.AddrPort, err error) {
	silent, ok := p.refusals.due()
	if !ok {
		p.Metrics.Verdict(string(d), string(VerdictLimit))
		return
	}
	if silent > 0 {
		err = fmt.Errorf("%w (and %d more not logged)", err, silent)
	}
	ctx, f := p.begin(p.ctx, d, p.info.UID, src, dst)
	f.end(ctx, refuse(VerdictLimit, "%w", err))
}

// connectVerdict is the verdict of a connection whose other half cannot be made.
func connectVerdict(err error) Verdict {
	if outOfDescriptors(err) {
		return VerdictLimit
	}
	return VerdictConnect
}

// outOfDescriptors: the process has none left, or the whole machine has none.
func outOfDescriptors(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE)
}

// leasedConn is a connection of HBONE that the pod opened. It gives back its descriptor when it is closed.
type leasedConn struct {
	*net.TCPConn
	lease *lease
}

func (c leasedConn) Close() error {
	defer c.lease.release()
	return c.TCPConn.Close()
}

// dialHBONE connects at the expense of the pod.
func (p *podProxy) dialHBONE(ctx context.Context, from netip.Addr, to netip.AddrPort) (net.Conn, error) {
	l, err := p.account.take(use{0, fdsHBONE})
	if err != nil {
		return nil, err
	}
	conn, err := p.network.Dial(ctx, from, to)
	if err != nil {
		l.release()
		return nil, err
	}
	return leasedConn{conn, l}, nil
}
