// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// limit sets what the world's pods share, which are served already.
func (w *world) limit(l Limits) {
	w.proxy.budget.mu.Lock()
	defer w.proxy.budget.mu.Unlock()
	w.proxy.budget.limits = l
}

// uses is what the pod holds of the budget.
func (w *world) uses(e *enrolled) use {
	w.proxy.budget.mu.Lock()
	defer w.proxy.budget.mu.Unlock()
	return e.served.(*podProxy).account.used
}

// wantUse waits until the pod holds that much.
func (w *world) wantUse(what string, e *enrolled, want use) {
	w.t.Helper()
	testutil.Eventually(w.t, 10*time.Second, func() error {
		if got := w.uses(e); got != want {
			return fmt.Errorf("%s: %s uses %+v, want %+v", what, e.Name, got, want)
		}
		return nil
	})
}

// TestRequestsOverTheBudgetAreRefusedByStatus: the connection of HBONE stays, and carries the next request when there is
// room again.
func TestRequestsOverTheBudgetAreRefusedByStatus(t *testing.T) {
	w := newWorld(t)
	echo := w.server.Echo(t, "server", netip.AddrPortFrom(w.server.Addr4, 7000).String())
	connect := w.connectAs(clientSPIFFE, netip.AddrPortFrom(w.server.Addr4, hbonePort))
	authority := echo.Addr.String()
	if err := connect(authority); err != nil {
		t.Fatal(err)
	}
	w.wantUse("the connection is kept", w.server, use{0, fdsHBONE})
	w.limit(Limits{ConnectionsPerPod: 1})
	held := w.dial(w.legacy, echo.Addr)
	if _, err := testutil.Ask(held); err != nil {
		t.Fatalf("the pod's only connection: %v", err)
	}
	wantStatus(t, authority, connect(authority), statusUnavailable)
	w.wantLine("connection failed", `direction="inbound"`, `verdict="refused-limit"`, "the pod has 1, the limit of each pod")
	_ = held.Close()
	testutil.Eventually(t, 10*time.Second, func() error { return connect(authority) })
}

// TestDialsOfHBONEAreCharged: a connection to a peer is the dialling pod's as long as it lives, and the listening pod's at
// the other end. One that is over the budget is not made.
func TestDialsOfHBONEAreCharged(t *testing.T) {
	w := newWorld(t)
	echo := w.server.Echo(t, "server", netip.AddrPortFrom(w.server.Addr4, 7000).String())
	w.limit(Limits{Descriptors: 1}) // for what the app opens
	if _, err := w.client.AskFrom(echo.Addr); err == nil {
		t.Error("connected without a descriptor for it")
	}
	w.wantLine("connection complete", `direction="outbound"`, "1 file descriptors is used up")
	both := func(what string, client, server use) {
		t.Helper()
		w.wantUse(what, w.client, client)
		w.wantUse(what, w.server, server)
	}
	both("after the refusal", use{}, use{})
	w.limit(Limits{Descriptors: 100})
	conn, err := w.client.Dial(t.Context(), "tcp", echo.Addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := testutil.Ask(conn); err != nil {
		t.Fatal(err)
	}
	both("connected", use{1, fdsAccepted + fdsHBONE}, use{1, fdsStream + fdsHBONE})
	_ = conn.Close()
	both("closed, the connection to the peer is kept", use{0, fdsHBONE}, use{0, fdsHBONE})
	w.client.served.Stop()
	both("stopped", use{}, use{})
}

// TestStalledPeersTakeEveryHandshake: as many real connections as there is room for say nothing. A client of another
// address gets in all the same; nothing is left of them when they go.
func TestStalledPeersTakeEveryHandshake(t *testing.T) {
	w := newWorld(t)
	echo := w.server.Echo(t, "server", netip.AddrPortFrom(w.server.Addr4, 7000).String())
	h := &w.server.served.(*podProxy).handshakes
	underWay := func(want int) {
		t.Helper()
		testutil.Eventually(t, 20*time.Second, func() error {
			h.mu.Lock()
			defer h.mu.Unlock()
			if h.total != want {
				return fmt.Errorf("%d handshakes are under way, want %d", h.total, want)
			}
			return nil
		})
	}
	var stalled []net.Conn
	for range maxHandshakes {
		stalled = append(stalled, w.dial(w.legacy, netip.AddrPortFrom(w.server.Addr4, hbonePort)))
	}
	defer func() {
		for _, conn := range stalled {
			_ = conn.Close()
		}
	}()
	underWay(maxHandshakes)
	ended := make(chan error, maxHandshakes)
	for _, conn := range stalled {
		go func() {
			_, err := conn.Read(make([]byte, 1))
			ended <- err
		}()
	}
	if answer, err := w.client.AskFrom(echo.Addr); err != nil || answer.Name != "server" {
		t.Errorf("a client while all places are taken: got %+v, %v", answer, err)
	}
	w.wantLine("connection failed", `verdict="refused-limit"`, "made room", "src.addr="+w.legacy.Addr4.String())
	underWay(maxHandshakes - 1)
	select {
	case err := <-ended:
		if !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, io.EOF) {
			t.Errorf("one of the silent: got %v, want it ended", err)
		}
	case <-time.After(5 * time.Second):
		t.Error("none of the silent was ended")
	}
	for _, conn := range stalled {
		_ = conn.Close()
	}
	underWay(0)
}
