// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// flowLog collects the events of a node until the test ends.
type flowLog struct {
	mu     sync.Mutex
	events []FlowEvent
}

func (w *world) watchFlows(t *testing.T) *flowLog {
	t.Helper()
	r, err := w.Flows()
	if err != nil {
		t.Fatal(err)
	}
	log, done := &flowLog{}, make(chan error, 1)
	go func() { done <- log.read(r) }()
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, os.ErrClosed) {
			t.Errorf("Read after Close: got %v, want %v", err, os.ErrClosed)
		}
		if lost, err := r.Lost(); err != nil || lost > 0 {
			t.Errorf("lost: %d events, %v", lost, err)
		}
	})
	return log
}

func (l *flowLog) read(r *FlowReader) error {
	for {
		var e FlowEvent
		if err := r.Read(&e); err != nil {
			return err
		}
		l.mu.Lock()
		l.events = append(l.events, e)
		l.mu.Unlock()
	}
}

// of returns the events of the socket whose ends are these, in order.
func (l *flowLog) of(local, remote netip.AddrPort) (events []FlowEvent) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.events {
		if e.Local == local && e.Remote == remote {
			events = append(events, e)
		}
	}
	return events
}

// wantClosed waits for the end of a connection and checks what was told of it.
func (l *flowLog) wantClosed(t *testing.T, local, remote netip.AddrPort, want FlowEvent) {
	t.Helper()
	var all []FlowEvent
	testutil.Eventually(t, 20*time.Second, func() error {
		if all = l.of(local, remote); len(all) < 2 || all[len(all)-1].Kind != FlowClose {
			return fmt.Errorf("%v -> %v: got %+v, want it opened and closed", local, remote, all)
		}
		return nil
	})
	first, last := all[0], all[len(all)-1]
	if first.Kind != FlowOpen || first.State != "established" || first.Sent != 0 || first.Received != 0 {
		t.Errorf("first event: got %+v", first)
	}
	for _, e := range all {
		if e.NetnsCookie != want.NetnsCookie || e.Outbound != want.Outbound || e.Path != want.Path || e.Socket != first.Socket {
			t.Errorf("got %v of %d by %v, outbound %v; want %d by %v, outbound %v",
				e.Kind, e.NetnsCookie, e.Path, e.Outbound, want.NetnsCookie, want.Path, want.Outbound)
		}
		if since := time.Since(e.At); since < 0 || since > time.Minute {
			t.Errorf("%v: told to be %v ago", e.Kind, since)
		}
	}
	if last.Sent != want.Sent || last.Received != want.Received {
		t.Errorf("%v %v -> %v (%s): got %d bytes sent, %d received, want %d and %d",
			want.Path, local, remote, last.State, last.Sent, last.Received, want.Sent, want.Received)
	}
	if last.RTT <= 0 || last.RTT > 5*time.Second {
		t.Errorf("RTT: got %v", last.RTT)
	}
}

// exchange sends n bytes to an Echo and reads them back, and closes in one of the ways that connections end.
func exchange(t *testing.T, from *testutil.NS, addr netip.AddrPort, n int, halfClose bool) (local netip.AddrPort, received uint64) {
	t.Helper()
	conn, err := from.Dial(context.Background(), "tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	local = unmap(conn.LocalAddr())
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	go func() {
		_, _ = conn.Write(make([]byte, n))
		if halfClose {
			_ = conn.(*net.TCPConn).CloseWrite()
		}
	}()
	if halfClose {
		got, err := io.Copy(io.Discard, conn)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
		return local, uint64(got)
	}
	// A greeting of unknown length, and the echo.
	buf, got := make([]byte, 64<<10), 0
	for zeros := 0; zeros < n; {
		r, err := conn.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range buf[:r] {
			if b == 0 {
				zeros++
			}
		}
		got += r
	}
	_ = conn.Close()
	return local, uint64(got)
}
