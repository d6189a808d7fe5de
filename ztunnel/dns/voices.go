// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// maxVoices is how many servers a pod may ask in turn without a socket being made for each answer.
const maxVoices = 8

// voices keeps sockets that send from the addresses that a pod asks. A pod has few name servers.
type voices struct {
	speak func(ctx context.Context, at netip.AddrPort) (*net.UDPConn, error)

	mu     sync.Mutex
	closed bool
	recent []voice // the last used first
}

type voice struct {
	at   netip.AddrPort
	conn *net.UDPConn
}

// say sends msg from one address to another. Sending is bounded: a datagram that does not fit is one that got lost.
func (v *voices) say(ctx context.Context, from, to netip.AddrPort, msg []byte) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	conn, err := v.getLocked(ctx, from)
	if err != nil {
		return err
	}
	_ = conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	if _, err = conn.WriteToUDPAddrPort(msg, to); err != nil {
		_ = conn.Close()
		v.recent = v.recent[1:]
	}
	return err
}

// getLocked returns the socket at the front of recent.
func (v *voices) getLocked(ctx context.Context, at netip.AddrPort) (*net.UDPConn, error) {
	if v.closed {
		return nil, net.ErrClosed
	}
	if i := slices.IndexFunc(v.recent, func(e voice) bool { return e.at == at }); i >= 0 {
		e := v.recent[i]
		v.recent = slices.Insert(slices.Delete(v.recent, i, i+1), 0, e)
		return e.conn, nil
	}
	conn, err := v.speak(ctx, at)
	if err != nil {
		return nil, err
	}
	v.recent = slices.Insert(v.recent, 0, voice{at, conn})
	if len(v.recent) > maxVoices {
		_ = v.recent[maxVoices].conn.Close()
		v.recent = v.recent[:maxVoices]
	}
	return conn, nil
}

func (v *voices) close() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.closed = true
	for _, e := range v.recent {
		_ = e.conn.Close()
	}
	v.recent = nil
}
