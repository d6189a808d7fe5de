// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"bytes"
	"context"
	"io"
	"sync/atomic"
	"testing"

	"golang.org/x/net/http2"
)

// purse is a Memory with a switch.
type purse struct {
	lent  atomic.Int64
	empty atomic.Bool
}

func (p *purse) Borrow(n int) int {
	if p.empty.Load() {
		return 0
	}
	p.lent.Add(int64(n))
	return n
}
func (p *purse) Return(n int) { p.lent.Add(-int64(n)) }
func (p *purse) Short() bool  { return p.empty.Load() }

// from gives both ends a memory of their own.
func from(server, client *purse) option {
	return func(s *Server, c *PoolConfig) {
		s.Memory = server
		if client != nil {
			c.Memory = client
		}
	}
}

// TestWindowOpensWithTheAnswer: a client that waits for its answer never sees less than the window that streams begin with.
func TestWindowOpensWithTheAnswer(t *testing.T) {
	server := &purse{}
	p := dialRaw(t, newEnv(t, stallable, from(server, nil)))
	settings := p.next(func(f http2.Frame) bool { _, ok := f.(*http2.SettingsFrame); return ok }).(*http2.SettingsFrame)
	if got, _ := settings.Value(http2.SettingInitialWindowSize); got != defaultWindow {
		t.Errorf("initial window: got %d, want %d", got, defaultWindow)
	}
	openStalled(p, 1)
	p.wantStatus(1, "200")
	update := p.next(func(f http2.Frame) bool { return f.Header().StreamID == 1 }).(*http2.WindowUpdateFrame)
	if want := ourStreamWindow - defaultWindow; int(update.Increment) != want || server.lent.Load() != int64(want) {
		t.Errorf("update of %d with %d lent, want %d", update.Increment, server.lent.Load(), want)
	}
	must(t, p.WriteData(1, false, make([]byte, ourStreamWindow)))
	must(t, p.WriteRSTStream(1, http2.ErrCodeInternal))
	eventually(t, func() bool { return server.lent.Load() == 0 })
}

// TestRefusedRequestsKeepNothing: whatever was lent at either end is returned.
func TestRefusedRequestsKeepNothing(t *testing.T) {
	server, client := &purse{}, &purse{}
	e := newEnv(t, func(_ context.Context, r *ServerStream) { _ = r.Reject(503) }, from(server, client))
	if _, _, err := e.connect(t.Context()); err == nil {
		t.Fatal("the request was not refused")
	}
	eventually(t, func() bool { return server.lent.Load() == 0 && client.lent.Load() == 0 })
}

// TestWindowsFollowTheMemory: they grow while there is some, shrink to the least when it is short, which is enough to go
// on with, and grow again. In the end all is returned.
func TestWindowsFollowTheMemory(t *testing.T) {
	server, client := &purse{}, &purse{}
	e := newEnv(t, echo, from(server, client))
	s := e.mustConnect(t)
	size := func() int { s.mu.Lock(); defer s.mu.Unlock(); return s.recv.size }
	pass := func() {
		t.Helper()
		want := bytes.Repeat([]byte("0123456789abcdef"), 1<<20/4)
		go func() { _, _ = s.Write(want) }()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(s, got); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("read: %v, equal %v", err, bytes.Equal(got, want))
		}
	}
	if got := size(); got != ourStreamWindow {
		t.Errorf("first window: got %d, want %d", got, ourStreamWindow)
	}
	for range 10 {
		pass()
	}
	if got := size(); got <= ourStreamWindow || client.lent.Load() != int64(got-defaultWindow) {
		t.Errorf("the window has grown to %d, of which %d are lent", got, client.lent.Load())
	}
	server.empty.Store(true)
	client.empty.Store(true)
	for range 10 {
		pass()
	}
	if got := size(); got != defaultWindow || client.lent.Load() != 0 || server.lent.Load() != 0 {
		t.Errorf("without memory: window %d, %d and %d lent; want %d and none", got, client.lent.Load(), server.lent.Load(), defaultWindow)
	}
	if got := s.c.loans.Load(); got != windowLoans {
		t.Errorf("the connection has %d left to lend, want %d", got, windowLoans)
	}
	client.empty.Store(false)
	for range 4 {
		pass()
	}
	if got := size(); got < ourStreamWindow {
		t.Errorf("with memory again: window %d, want at least %d", got, ourStreamWindow)
	}
	must(t, s.Close())
	if got := client.lent.Load(); got != 0 {
		t.Errorf("%d are lent after Close", got)
	}
}

// TestMemoryReturnsWithLostConnections: the peer is gone in the middle of data.
func TestMemoryReturnsWithLostConnections(t *testing.T) {
	server := &purse{}
	p := dialRaw(t, newEnv(t, stallable, from(server, nil)))
	openStalled(p, 20)
	for id := uint32(1); id < 40; id += 2 {
		must(t, p.WriteData(id, false, make([]byte, defaultWindow/2)))
	}
	p.wantPong()
	eventually(t, func() bool { return server.lent.Load() == 20*(ourStreamWindow-defaultWindow) })
	must(t, p.conn.Close())
	eventually(t, func() bool { return server.lent.Load() == 0 })
}
