// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/internal/testutil"
	"github.com/sluice-mesh/sluice/ztunnel/hbone"
)

// TestPodsShareTheMemory: each pod in turn takes all it gets; what is given back is there for the next.
func TestPodsShareTheMemory(t *testing.T) {
	const total = 64 << 20
	node := &memory{}
	grab := func(m *podMemory) {
		for m.Borrow(1<<20) > 0 {
		}
	}
	pods := []*podMemory{{node: node, total: total}, {node: node, total: total}, {node: node, total: total}}
	for i, want := range []int64{total / 2, total / 4, total / 8} {
		grab(pods[i])
		if got := pods[i].lent.Load(); got > want || got < want-1<<18 {
			t.Errorf("pod %d got %d of what was free, want %d or a little less", i, got, want)
		}
	}
	if !pods[0].Short() || pods[2].Short() {
		t.Errorf("short: the first pod %v, the last %v, want that only the first has more than is free", pods[0].Short(), pods[2].Short())
	}
	if node.short.Load() == 0 {
		t.Error("nothing counts what was held back")
	}
	for _, m := range pods {
		m.Return(int(m.lent.Load()))
	}
	if got := node.lent.Load(); got != 0 {
		t.Errorf("%d are lent after all was returned", got)
	}
	if got := pods[2].Borrow(1 << 20); got != 1<<20 {
		t.Errorf("then a pod gets %d, want all it asks for", got)
	}
}

// TestMemoryIsNeverLentTwice: whoever borrows at once, the sum stays in its bounds and comes back.
func TestMemoryIsNeverLentTwice(t *testing.T) {
	node := &memory{}
	var pods sync.WaitGroup
	for range 8 {
		m := &podMemory{node: node, total: 1 << 20}
		pods.Go(func() {
			for range 1000 {
				a, b := m.Borrow(512<<10), m.Borrow(64<<10)
				if got := node.lent.Load(); got > 1<<20 {
					t.Errorf("%d are lent of %d", got, 1<<20)
				}
				m.Return(a)
				m.Return(b)
			}
		})
	}
	pods.Wait()
	if got := node.lent.Load(); got != 0 {
		t.Errorf("%d are lent after all was returned", got)
	}
}

// tunnels is a server of HBONE that takes its windows from m, and a client.
type tunnels struct {
	connect func() *hbone.Stream
	close   func()
}

func newTunnels(t *testing.T, m hbone.Memory, handler func(context.Context, *hbone.ServerStream)) tunnels {
	t.Helper()
	ca := testutil.NewCA(t)
	server := &hbone.Server{
		TLS:     &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{ca.Issue(t, "spiffe://cluster.local/ns/default/sa/server")}},
		Handler: handler, Memory: m,
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { _ = server.ServeConn(ctx, conn) })
		}
	})
	pool := hbone.NewPool(hbone.PoolConfig{})
	over := sync.OnceFunc(func() {
		cancel()
		_ = ln.Close()
		_ = pool.Close(ctx)
		serving.Wait()
	})
	t.Cleanup(over)
	key := hbone.Key{Addr: addrPort(ln.Addr())}
	dial := func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", ln.Addr().String())
	}
	return tunnels{func() *hbone.Stream {
		t.Helper()
		s, _, err := pool.Connect(t.Context(), key, dial, peerTLS(), hbone.ConnectRequest{Authority: "10.0.0.1:80"})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}, over}
}

// stalled accepts and reads nothing.
func stalled(ctx context.Context, r *hbone.ServerStream) {
	if _, err := r.Accept(nil); err == nil {
		<-ctx.Done()
	}
}

// fill writes until nothing is taken for a second, and returns how much was.
func fill(t *testing.T, s *hbone.Stream) (total int) {
	t.Helper()
	for p := make([]byte, 256<<10); ; {
		_ = s.SetWriteDeadline(time.Now().Add(time.Second))
		n, err := s.Write(p)
		total += n
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && n == 0:
			return total
		case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
			t.Error(err)
			return total
		}
	}
}

func heap() uint64 {
	for range 3 { // pools survive one collection
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestSlowReadersOfOnePodLeaveMemoryToAnother: 100 streams that one pod does not read take half of the memory and the
// least of windows each, and no more; another pod's stream has a window that grows, and passes. What was held is back
// when the streams are closed.
func TestSlowReadersOfOnePodLeaveMemoryToAnother(t *testing.T) {
	const total, streams, least = 8 << 20, 100, 65535
	node := &memory{}
	slow, other := &podMemory{node: node, total: total}, &podMemory{node: node, total: total}
	before := heap()
	victim := newTunnels(t, other, func(_ context.Context, r *hbone.ServerStream) {
		if s, err := r.Accept(nil); err == nil {
			n, err := io.Copy(io.Discard, s)
			_, _ = fmt.Fprint(s, n, err)
			_ = s.CloseWrite()
		}
	})
	noisy := newTunnels(t, slow, stalled)
	var filling sync.WaitGroup
	var mu sync.Mutex
	sent := 0
	for range streams {
		s := noisy.connect()
		filling.Go(func() {
			n := fill(t, s)
			mu.Lock()
			defer mu.Unlock()
			sent += n
		})
	}
	filling.Wait()
	if most := total/2 + streams*least; sent < streams*least || sent > most {
		t.Errorf("%d bytes were taken of those that nobody reads, want from %d to %d", sent, streams*least, most)
	}
	if held, most := heap()-before, uint64(2*(total/2+streams*least)+6<<20); held > most {
		t.Errorf("they hold %d bytes, want at most %d", held, most)
	}

	s := victim.connect()
	const size = 64 << 20
	if _, err := s.ReadFrom(io.LimitReader(zeros{}, size)); err != nil {
		t.Errorf("another pod's stream: %v", err)
	}
	if got := other.lent.Load(); got < 512<<10-least {
		t.Errorf("another pod's windows hold %d bytes above their least, want at least those of a new stream", got)
	}
	_ = s.CloseWrite()
	if got, err := io.ReadAll(s); string(got) != fmt.Sprint(size, error(nil)) || err != nil {
		t.Errorf("another pod's stream: got %q, %v, want all %d bytes", got, err, size)
	}
	_ = s.Close()
	noisy.close()
	victim.close()
	if node.lent.Load() != 0 || slow.lent.Load() != 0 || other.lent.Load() != 0 {
		t.Errorf("after the end %d bytes are lent, %d and %d to the pods", node.lent.Load(), slow.lent.Load(), other.lent.Load())
	}
	testutil.Eventually(t, 10*time.Second, func() error {
		if now := heap(); now > before+4<<20 {
			return fmt.Errorf("%d bytes are in use, %d before", now, before)
		}
		return nil
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestTunnelsTakeTheirWindowsFromThePods: both ends of a connection through the mesh, and the metrics.
func TestTunnelsTakeTheirWindowsFromThePods(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Limits.Memory = 16 << 20 })
	echo := w.server.Echo(t, "server", netip.AddrPortFrom(w.server.Addr4, 7000).String())
	conn, err := w.client.Dial(t.Context(), "tcp", echo.Addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := testutil.Ask(conn); err != nil {
		t.Fatal(err)
	}
	if got, _ := w.proxy.Memory(); got != 2*(512<<10-65535) {
		t.Errorf("the windows of a new connection hold %d above their least, want those of two streams of 512 KiB", got)
	}
	_ = conn.Close()
	testutil.Eventually(t, 10*time.Second, func() error {
		if got, _ := w.proxy.Memory(); got != 0 {
			return fmt.Errorf("after its end they hold %d", got)
		}
		return nil
	})
}
