// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// load asks from a pod again and again until stopped, and counts.
type load struct {
	stop     chan struct{}
	wait     sync.WaitGroup
	answered atomic.Int64
	mu       sync.Mutex
	failed   []error
}

func (w *world) load(from *testutil.Pod, to netip.AddrPort) *load {
	l := &load{stop: make(chan struct{})}
	l.wait.Go(func() {
		for {
			select {
			case <-l.stop:
				return
			default:
			}
			if _, err := from.AskFrom(to); err != nil {
				l.mu.Lock()
				l.failed = append(l.failed, err)
				l.mu.Unlock()
				continue
			}
			l.answered.Add(1)
		}
	})
	return l
}

func (l *load) end(t *testing.T, name string) {
	t.Helper()
	close(l.stop)
	l.wait.Wait()
	if len(l.failed) > 0 || l.answered.Load() == 0 {
		t.Errorf("%s: %d answered, %d failed, the first with %v", name, l.answered.Load(), len(l.failed), l.failed)
	}
	t.Logf("%s: %d answered, 0 refused", name, l.answered.Load())
}

func (l *load) more(t *testing.T, n int64) {
	t.Helper()
	goal := l.answered.Load() + n
	testutil.Eventually(t, 20*time.Second, func() error {
		if l.answered.Load() < goal {
			return errors.New("the load does not get on")
		}
		return nil
	})
}

func TestUpgradeRefusesAndBreaksNothing(t *testing.T) {
	w := newWorld(t)
	echo := w.server.Echo(t, "server", netip.AddrPortFrom(w.server.Addr4, 8080).String())
	mesh, plain := w.open(w.client.Pod, echo.Addr), w.open(w.legacy, echo.Addr)
	meshLoad, plainLoad := w.load(w.client.Pod, echo.Addr), w.load(w.legacy, echo.Addr)
	meshLoad.more(t, 5)

	next := w.newProxy(nil)
	for name, e := range map[string]*enrolled{"client": w.client, "server": w.server} {
		t.Cleanup(w.serve(next, e, name).Stop)
	}
	meshLoad.more(t, 5)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var drained sync.WaitGroup
	for _, e := range []*enrolled{w.client, w.server} {
		drained.Go(func() { e.served.Drain(ctx) })
	}
	meshLoad.more(t, 10)
	plainLoad.more(t, 10)
	meshLoad.end(t, "mTLS")
	plainLoad.end(t, "plaintext")
	for name, conn := range map[string]interface {
		Read([]byte) (int, error)
		Write([]byte) (int, error)
		Close() error
	}{"mTLS": mesh, "plaintext": plain} {
		if _, err := conn.Write([]byte("still here\n")); err != nil {
			t.Errorf("%s: the open connection broke: %v", name, err)
		}
		if _, err := conn.Read(make([]byte, 64)); err != nil {
			t.Errorf("%s: the open connection broke: %v", name, err)
		}
		_ = conn.Close()
	}
	drained.Wait() // Both connections are closed: the old proxy is done.
	if len(next.log.lines("connection complete", `verdict="mtls"`)) == 0 {
		t.Error("the new proxy carried nothing")
	}
}

func TestForcedDrainCutsAtTheLimit(t *testing.T) {
	w := newWorld(t)
	echo := w.server.Echo(t, "server", netip.AddrPortFrom(w.server.Addr4, 8080).String())
	conn := w.open(w.legacy, echo.Addr)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	w.server.served.Drain(ctx)
	wantReset(t, conn)
	w.wantLine("forced drain", `verdict="plaintext"`)
}

func TestStopCutsAtOnce(t *testing.T) {
	w := newWorld(t)
	echo := w.server.Echo(t, "server", netip.AddrPortFrom(w.server.Addr4, 8080).String())
	mesh, plain := w.open(w.client.Pod, echo.Addr), w.open(w.legacy, echo.Addr)
	w.server.served.Stop()
	wantReset(t, mesh)
	wantReset(t, plain)
	w.wantLine("the pod is no longer served")
}

func TestHiddenAddressIsRefused(t *testing.T) {
	w := newWorld(t)
	w.client.Run(t, "ip", "addr", "add", hidden4.String()+"/32", "dev", "lo")
	w.client.Run(t, "ip", "addr", "add", hidden6.String()+"/128", "dev", "lo", "nodad")
	for _, addr := range []netip.Addr{hidden4, hidden6} {
		for _, port := range []uint16{15001, 15006, 15008} {
			testutil.Eventually(t, 20*time.Second, func() error { // The kernel adds the route to an address a little later.
				if err := w.mustFail(w.client.Pod, netip.AddrPortFrom(addr, port)); !errors.Is(err, syscall.ECONNRESET) {
					return fmt.Errorf("%s port %d: got %w, want a reset", addr, port, err)
				}
				return nil
			})
		}
	}
	testutil.Eventually(t, 20*time.Second, func() error {
		if got := len(w.proxy.log.lines(`verdict="refused-hidden-address"`)); got != 6 {
			return fmt.Errorf("refusals in the log: got %d, want 6", got)
		}
		return nil
	})
}
