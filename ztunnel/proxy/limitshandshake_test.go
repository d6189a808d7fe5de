// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// stall has one address begin n handshakes.
func stall(t *testing.T, h *handshakes, from string, n int, end func(error)) (dones []func()) {
	t.Helper()
	for range n {
		done, err := h.admit(&addrConn{from: from}, end)
		if err != nil {
			t.Fatal(err)
		}
		dones = append(dones, done)
	}
	return dones
}

// TestStalledHandshakesKeepNobodyOut: whether of one address, of many, or of many of one /64, with which the innocent are.
func TestStalledHandshakesKeepNobodyOut(t *testing.T) {
	for name, tc := range map[string]struct {
		from     func(i int) string
		each     int
		innocent []string
	}{
		"one":  {func(int) string { return "10.0.0.1:1" }, maxHandshakes / 8, []string{"192.0.2.1:1", "[2001:db8::1]:1"}},
		"IPv4": {func(i int) string { return fmt.Sprintf("10.0.0.%d:1", i) }, maxHandshakes / 8, []string{"192.0.2.1:1", "[2001:db8::1]:1"}},
		"IPv6": {func(i int) string { return fmt.Sprintf("[fd00::%x]:1", i) }, maxHandshakes / 8, []string{"192.0.2.1:1", "[fd00::99]:1", "[fd00::99]:2"}},
	} {
		t.Run(name, func(t *testing.T) {
			var h handshakes
			var dones []func()
			var ended []error
			end := func(err error) { ended = append(ended, err) }
			for i := range 8 {
				dones = append(dones, stall(t, &h, tc.from(i+1), tc.each, end)...)
			}
			if h.total != maxHandshakes {
				t.Fatalf("%d are under way, want %d", h.total, maxHandshakes)
			}
			before := len(ended)
			for _, innocent := range tc.innocent {
				done, err := h.admit(&addrConn{from: innocent}, func(error) { t.Error("the innocent is ended") })
				if err != nil {
					t.Fatalf("%s: %v", innocent, err)
				}
				dones = append(dones, done)
			}
			if got := len(ended) - before; got != len(tc.innocent) || !errors.Is(ended[before], errLimit) {
				t.Errorf("%d were ended, %v, want %d, %v", got, ended, len(tc.innocent), errLimit)
			}
			for _, done := range dones {
				done()
			}
			if h.total != 0 || len(h.by) != 0 {
				t.Errorf("%d handshakes of %d sources are left", h.total, len(h.by))
			}
		})
	}
}

// TestBurstOfOneAddressWaitsForItself: it loses nothing, and keeps nobody else waiting, until too many are queued.
func TestBurstOfOneAddressWaitsForItself(t *testing.T) {
	const gateway = "10.0.0.1:1"
	var h handshakes
	end := func(err error) { t.Errorf("ended: %v", err) }
	admitted := make(chan func(), maxHandshakes+maxQueued)
	for _, done := range stall(t, &h, gateway, maxHandshakes, end) {
		admitted <- done
	}
	var queue sync.WaitGroup
	for range maxQueued {
		queue.Go(func() {
			done, err := h.admit(&addrConn{from: gateway}, end)
			if err != nil {
				t.Error(err)
				return
			}
			admitted <- done
		})
	}
	testutil.Eventually(t, 10*time.Second, func() error {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.queued != maxQueued {
			return fmt.Errorf("%d are queued", h.queued)
		}
		return nil
	})
	h.ready()
	if _, err := h.admit(&addrConn{from: gateway}, end); !errors.Is(err, errLimit) {
		t.Errorf("one more: got %v, want %v", err, errLimit)
	}
	for range maxHandshakes + maxQueued {
		(<-admitted)()
	}
	queue.Wait()
	if h.total != 0 || h.queued != 0 {
		t.Errorf("%d are under way and %d queued at the end", h.total, h.queued)
	}
}

// TestHonestStormWaits: when each source has one, none is ended nor refused, and no more are accepted.
func TestHonestStormWaits(t *testing.T) {
	var h handshakes
	end := func(err error) { t.Errorf("ended: %v", err) }
	var dones []func()
	for i := range maxHandshakes {
		done, err := h.admit(&addrConn{from: fmt.Sprintf("10.0.%d.%d:1", i/128, i%128)}, end)
		if err != nil {
			t.Fatal(err)
		}
		dones = append(dones, done)
	}
	h.ready()
	late, ready := make(chan error, 1), make(chan struct{})
	go func() {
		_, err := h.admit(&addrConn{from: "192.0.2.1:1"}, end)
		late <- err
	}()
	testutil.Eventually(t, 10*time.Second, func() error {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.waiting != 1 {
			return fmt.Errorf("%d are waiting", h.waiting)
		}
		return nil
	})
	go func() {
		h.ready()
		close(ready)
	}()
	select {
	case err := <-late:
		t.Fatalf("admitted without room: %v", err)
	case <-ready:
		t.Fatal("one more is accepted while another waits")
	case <-time.After(20 * time.Millisecond): // time to go wrong in
	}
	dones[0]()
	if err := <-late; err != nil {
		t.Errorf("then: %v", err)
	}
	<-ready
}

// TestHandshakeMakesRoom: silent connections to a pod take every place; a client of another source gets in, and one of
// the silent is told why in the log.
func TestHandshakeMakesRoom(t *testing.T) {
	w := newWorld(t)
	echo := w.server.Echo(t, "server", netip.AddrPortFrom(w.server.Addr4, 7000).String())
	to := netip.AddrPortFrom(w.server.Addr4, hbonePort)
	h := &w.server.served.(*podProxy).handshakes
	var held []net.Conn
	for range 2 {
		held = append(held, w.dial(w.legacy, to))
	}
	defer func() {
		for _, conn := range held {
			_ = conn.Close()
		}
	}()
	testutil.Eventually(t, 10*time.Second, func() error {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.total != len(held) {
			return fmt.Errorf("%d handshakes are under way", h.total)
		}
		return nil
	})
	h.mu.Lock() // the rest are of other addresses, one each
	for i := range maxHandshakes - len(held) {
		a := netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})
		h.by[sourceOf(a)] = []*handshake{{a, func(error) {}}}
	}
	h.total = maxHandshakes
	h.mu.Unlock()
	if answer, err := w.client.AskFrom(echo.Addr); err != nil || answer.Name != "server" {
		t.Errorf("a client while all places are taken: got %+v, %v", answer, err)
	}
	w.wantLine("connection failed", `verdict="refused-limit"`, "made room", "src.addr="+w.legacy.Addr4.String())
}
