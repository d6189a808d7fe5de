// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"bytes"
	"context"
	"io"
	"net"
	"sync/atomic"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/sys/unix"
)

// TestSmallDataKeepsItsOrder: what the read loop passes on by itself, what it must queue because the application does not
// read, and what the stream's own goroutine writes arrive in the order sent and counted once.
func TestSmallDataKeepsItsOrder(t *testing.T) {
	const size = 6 << 20 // more than the kernel takes without a reader
	pieces := []int{1, 700, 5000, pageBlock - 1, 3 * pageBlock}
	e := newEnv(t, func(_ context.Context, r *ServerStream) {
		s, err := r.Accept(nil)
		if err != nil {
			return
		}
		src := source64(size, 9)
		for i := 0; ; i++ {
			piece := make([]byte, pieces[i%len(pieces)])
			n, err := io.ReadFull(src, piece)
			if _, werr := s.Write(piece[:n]); err != nil || werr != nil {
				break
			}
		}
		_ = s.CloseWrite()
		_, _ = s.WriteTo(io.Discard)
	})
	near, app := tcpPair(t)
	var sent, received atomic.Uint64
	s := e.mustConnect(t)
	result := make(chan error, 1)
	go func() { result <- Splice(near, s, &sent, &received) }()
	eventually(t, s.behind) // the application reads nothing yet
	if got, want := digest(t, app), digest(t, source64(size, 9)); got != want {
		t.Error("digests differ")
	}
	must(t, app.CloseWrite())
	must(t, <-result)
	if got := received.Load(); got != size {
		t.Errorf("counted %d bytes, want %d", got, size)
	}
}

// TestSmallDataIsPassedOnByTheReadLoop while nothing waits; its goroutine is not woken for each answer.
func TestSmallDataIsPassedOnByTheReadLoop(t *testing.T) {
	e := newEnv(t, echo)
	near, app := tcpPair(t)
	s := e.mustConnect(t)
	go func() { _ = Splice(near, s, nil, nil) }()
	eventually(t, func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.direct.raw != nil })
	s.mu.Lock()
	direct := new(atomic.Uint64)
	s.direct.received = direct
	s.mu.Unlock()
	ping, pong := []byte("ping"), make([]byte, 4)
	for range 10 {
		_, err := app.Write(ping)
		must(t, err)
		_, err = io.ReadFull(app, pong)
		must(t, err)
		if !bytes.Equal(ping, pong) {
			t.Fatalf("got %q", pong)
		}
	}
	if got := direct.Load(); got != 40 {
		t.Errorf("the read loop passed on %d of 40 bytes", got)
	}
}

// TestEndGoesWithTheLastData: what an application sends right before it closes leaves in one frame with the end.
func TestEndGoesWithTheLastData(t *testing.T) {
	s, p, id := answered(t)
	near, app := tcpPair(t)
	_, err := app.Write(make([]byte, 1000))
	must(t, err)
	must(t, app.CloseWrite())
	eventually(t, func() bool { return tcpInfo(t, near).State == unix.BPF_TCP_CLOSE_WAIT })
	result := make(chan error, 1)
	go func() { result <- Splice(near, s, nil, nil) }()
	f := p.next(func(f http2.Frame) bool { return f.Header().Type == http2.FrameData })
	if d := f.(*http2.DataFrame); len(d.Data()) != 1000 || !d.StreamEnded() {
		t.Errorf("got %d bytes, end %v, want 1000 and the end", len(d.Data()), d.StreamEnded())
	}
	must(t, p.WriteData(id, true, nil))
	must(t, <-result)
}

func tcpInfo(t *testing.T, c *net.TCPConn) (info unix.TCPInfo) {
	control(c, func(fd int) {
		got, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		must(t, err)
		info = *got
	})
	return info
}
