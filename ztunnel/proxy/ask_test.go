// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/internal/testutil"
	"github.com/sluice-mesh/sluice/ztunnel/discovery"
)

// open dials an Echo and leaves the connection open.
func (w *world) open(from *testutil.Pod, to netip.AddrPort) net.Conn {
	w.t.Helper()
	conn := w.dial(from, to)
	if _, err := testutil.Ask(conn); err != nil {
		w.t.Fatal(err)
	}
	return conn
}

func (w *world) dial(from *testutil.Pod, to netip.AddrPort) net.Conn {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Second)
	defer cancel()
	conn, err := from.Dial(ctx, "tcp", to.String())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(15 * time.Second))
	return conn
}

// mustFail asks to and returns how that failed.
func (w *world) mustFail(from *testutil.Pod, to netip.AddrPort) error {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Second)
	defer cancel()
	conn, err := from.Dial(ctx, "tcp", to.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	n, err := conn.Read(make([]byte, 1))
	if n > 0 || err == nil {
		w.t.Errorf("%s answered %s", to, from.Name)
	}
	return err
}

func wantReset(t *testing.T, conn net.Conn) {
	t.Helper()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("open connection: got %v, want a reset", err)
	}
}

// republish sends a changed copy of a workload: records are immutable.
func (w *world) republish(e *enrolled, edit func(*discovery.Workload)) {
	c := *e.workload
	c.Services = nil
	edit(&c)
	e.workload = &c
	w.store.Apply(discovery.Update{Workloads: []*discovery.Workload{&c}})
}

// capture puts addresses into the kernel's set.
func (w *world) capture(addrs ...netip.Addr) {
	w.t.Helper()
	if err := w.node.Destinations().Add(addrs...); err != nil {
		w.t.Fatal(err)
	}
}
