// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

func TestPodsShareTheBudget(t *testing.T) {
	const total = 120
	b := &budget{limits: Limits{Descriptors: total}}
	grab := func(a *account) (held []*lease) {
		for {
			l, err := a.take(use{1, 1})
			if err != nil {
				if !errors.Is(err, errLimit) || !strings.Contains(err.Error(), "120 file descriptors") {
					t.Fatalf("got %v, want the limit by its name", err)
				}
				return held
			}
			held = append(held, l)
		}
	}
	pods := []*account{{budget: b}, {budget: b}, {budget: b}}
	var held [][]*lease
	for i, want := range []int{80, 27, 9} {
		held = append(held, grab(pods[i]))
		if got := len(held[i]); got != want {
			t.Errorf("pod %d got %d of what was free, want %d", i, got, want)
		}
	}
	for _, pod := range held {
		for _, l := range pod {
			l.release()
			l.release()
		}
	}
	if b.used != (use{}) || pods[0].used != (use{}) {
		t.Errorf("after all was released %+v is used, by the first pod %+v", b.used, pods[0].used)
	}
	if got := len(grab(pods[2])); got != 80 {
		t.Errorf("then a pod gets %d, want 80", got)
	}
}

func TestLimitsOfConnections(t *testing.T) {
	b := &budget{limits: Limits{Connections: 1}}
	a, other := &account{budget: b}, &account{budget: b}
	l, err := a.take(use{1, 1})
	if err != nil {
		t.Fatalf("the only connection: %v", err)
	}
	if _, err := other.take(use{1, 1}); !errors.Is(err, errLimit) {
		t.Errorf("one more than the node's: got %v, want %v", err, errLimit)
	}
	l.release()
	b.limits = Limits{ConnectionsPerPod: 1, Descriptors: 8}
	if l, err = a.take(use{1, 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.take(use{1, 1}); !errors.Is(err, errLimit) {
		t.Errorf("one more than the pod's: got %v, want %v", err, errLimit)
	}
	if err := l.grow(4); err != nil {
		t.Errorf("grow to two thirds of what there is: %v", err)
	}
	if err := l.grow(2); !errors.Is(err, errLimit) {
		t.Errorf("grow past two thirds: got %v, want %v", err, errLimit)
	}
	l.release()
	if b.used != (use{}) {
		t.Errorf("after release %+v is used", b.used)
	}
}

func TestDescriptorsLeaveAReserve(t *testing.T) {
	for open, want := range map[uint64]int{64: 32, 1024: 896, 1 << 20: 1<<20 - 1<<17, 1 << 63: 1 << 30} {
		if got := DescriptorsFor(open); got != want {
			t.Errorf("of %d open files: got %d for connections, want %d", open, got, want)
		}
	}
}

// addrConn has nothing but a peer.
type addrConn struct {
	net.Conn
	from string
}

func (c *addrConn) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(c.from))
}

// TestOnePodsConnectionsLeaveRoomForOthers: legacy opens connections to the server until the server's share is used, and
// the client pod's connections go on. Then legacy lets go, and is served again.
func TestOnePodsConnectionsLeaveRoomForOthers(t *testing.T) {
	w := newWorld(t)
	w.proxy.budget.mu.Lock() // the pods are served already
	w.proxy.budget.limits = Limits{Connections: 40}
	w.proxy.budget.mu.Unlock()
	echo := w.server.Echo(t, "server", netip.AddrPortFrom(w.server.Addr4, 7000).String())
	outside := w.legacy.Echo(t, "outside", netip.AddrPortFrom(w.legacy.Addr4, 7001).String())

	var held []net.Conn
	var refused error
	for refused == nil && len(held) <= 40 {
		conn, err := w.legacy.Dial(t.Context(), "tcp", echo.Addr.String())
		if err != nil {
			refused = err // the reset was quicker than connect
			break
		}
		if _, refused = testutil.Ask(conn); refused == nil {
			held = append(held, conn)
		} else {
			_ = conn.Close()
		}
	}
	if got := len(held); !errors.Is(refused, unix.ECONNRESET) || got != 27 {
		t.Errorf("%d connections were carried, then %v; want 27, two thirds of what there is, then a reset", got, refused)
	}
	w.wantLine("connection failed", `verdict="refused-limit"`, "too many connections", "40 connections")
	for range 12 {
		if answer, err := w.client.AskFrom(outside.Addr); err != nil || answer.Name != "outside" {
			t.Fatalf("another pod's connection: got %+v, %v", answer, err)
		}
	}
	for _, conn := range held {
		_ = conn.Close()
	}
	testutil.Eventually(t, 10*time.Second, func() error {
		_, err := w.legacy.AskFrom(echo.Addr)
		return err
	})
}

// What queries hold is of the pod's share too.
func TestQueriesHaveDescriptorsOfThePod(t *testing.T) {
	c := Client{&podProxy{account: account{budget: &budget{limits: Limits{Descriptors: 9}}}}}
	release, err := c.Reserve(6)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Reserve(1); !errors.Is(err, errLimit) {
		t.Errorf("beyond two thirds: got %v, want %v", err, errLimit)
	}
	release()
	if release, err = c.Reserve(6); err != nil {
		t.Fatalf("after all was given back: %v", err)
	}
	release()
	if n := c.Shed(nil, errors.New("another")); n != 0 {
		t.Errorf("%d connections were shed for an error that is no want of descriptors", n)
	}
}
