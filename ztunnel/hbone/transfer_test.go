// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	mrand "math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

func TestConnectCarriesHeadersAndBytes(t *testing.T) {
	e := newEnv(t, func(_ context.Context, r *ServerStream) {
		if got := r.Authority(); got != "10.0.0.1:80" {
			t.Errorf("authority: got %q, want 10.0.0.1:80", got)
		}
		if got := r.Header("baggage"); got != "k=v" {
			t.Errorf("baggage: got %q, want k=v", got)
		}
		if got := r.ConnState().PeerCertificates[0].URIs[0].String(); got != "spiffe://td/ns/demo/sa/client" {
			t.Errorf("client identity: got %q", got)
		}
		s, err := r.Accept([]Header{{"baggage", "k=server"}})
		if err != nil {
			t.Errorf("accept: %v", err)
			return
		}
		_, _ = io.Copy(writerOnly{s}, s)
		_ = s.CloseWrite()
	})
	s, resp, err := e.connect(t.Context(), Header{"baggage", "k=v"}, Header{"traceparent", "00-1-2-00"})
	must(t, err)
	if got := resp.Header("baggage"); got != "k=server" {
		t.Errorf("response baggage: got %q, want k=server", got)
	}
	if got := s.ConnState().PeerCertificates[0].URIs[0].String(); got != "spiffe://td/ns/demo/sa/server" {
		t.Errorf("server identity: got %q", got)
	}
	_, err = s.Write([]byte("hello"))
	must(t, err)
	must(t, s.CloseWrite())
	got, err := io.ReadAll(s)
	must(t, err)
	if string(got) != "hello" {
		t.Fatalf("got %q, want hello", got)
	}
	must(t, s.Close())
}

// source64 is a reproducible stream of n bytes whose digest both ends can compute.
func source64(n int64, seed uint64) io.Reader {
	var key [32]byte
	key[0] = byte(seed)
	return io.LimitReader(mrand.NewChaCha8(key), n)
}

func digest(tb testing.TB, r io.Reader) [32]byte {
	tb.Helper()
	h := sha256.New()
	_, err := io.Copy(h, r)
	if err != nil {
		tb.Error(err)
	}
	return [32]byte(h.Sum(nil))
}

// proxied is a chain: app TCP, Splice, stream, Splice, server TCP.
//
//	client ── near ═ HBONE ═ far ── server
func proxied(tb testing.TB, opts ...option) (e *env, open func() (client, server *net.TCPConn, result chan error)) {
	tb.Helper()
	type end struct {
		tcp    *net.TCPConn
		result chan error
	}
	ends := make(chan end)
	e = newEnv(tb, func(ctx context.Context, r *ServerStream) {
		s, err := r.Accept(nil)
		if err != nil {
			return
		}
		e := <-ends
		e.result <- Splice(e.tcp, s, nil, nil)
	}, opts...)
	open = func() (*net.TCPConn, *net.TCPConn, chan error) {
		tb.Helper()
		client, near := tcpPair(tb)
		far, server := tcpPair(tb)
		result := make(chan error, 2)
		s := e.mustConnect(tb)
		ends <- end{far, result}
		go func() { result <- Splice(near, s, new(atomic.Uint64), new(atomic.Uint64)) }()
		return client, server, result
	}
	return e, open
}

func TestSpliceMovesBulkBothWays(t *testing.T) {
	const size = 64 << 20
	_, open := proxied(t)
	client, server, result := open()
	var wg sync.WaitGroup
	send := func(to *net.TCPConn, seed uint64) {
		defer wg.Done()
		if n, err := io.Copy(to, source64(size, seed)); err != nil || n != size {
			t.Errorf("sent %d: %v", n, err)
		}
		_ = to.CloseWrite()
	}
	var up, down [32]byte
	receive := func(from *net.TCPConn, sum *[32]byte) {
		defer wg.Done()
		*sum = digest(t, from)
	}
	wg.Add(4)
	go send(client, 1)
	go send(server, 2)
	go receive(server, &up)
	go receive(client, &down)
	wg.Wait()
	if want := digest(t, source64(size, 1)); up != want {
		t.Error("client to server: digests differ")
	}
	if want := digest(t, source64(size, 2)); down != want {
		t.Error("server to client: digests differ")
	}
	for range 2 {
		must(t, <-result)
	}
}

func TestManyStreamsAtOnceKeepTheirBytesApart(t *testing.T) {
	_, open := proxied(t)
	var wg sync.WaitGroup
	for i := range 40 {
		client, server, _ := open()
		size := int64(1 + i*50_000)
		wg.Add(2)
		go func() {
			defer wg.Done()
			_, _ = io.Copy(client, source64(size, uint64(i)))
			_ = client.CloseWrite()
			if got, want := digest(t, client), digest(t, source64(size, uint64(i))); got != want {
				t.Errorf("stream %d: digests differ", i)
			}
		}()
		go func() {
			defer wg.Done()
			_, _ = io.Copy(writerOnly{server}, struct{ io.Reader }{server})
			_ = server.CloseWrite()
		}()
	}
	wg.Wait()
}

func TestHalfCloseByEitherSide(t *testing.T) {
	for _, first := range []string{"client", "server"} {
		t.Run(first+" first", func(t *testing.T) {
			_, open := proxied(t)
			a, b, result := open()
			if first == "server" {
				a, b = b, a
			}
			_, _ = a.Write([]byte("question"))
			must(t, a.CloseWrite())
			got, err := io.ReadAll(b)
			if err != nil || string(got) != "question" {
				t.Fatalf("got %q, %v, want question", got, err)
			}
			// The other direction goes on long after.
			for _, part := range []string{"an", "sw", "er"} {
				_, err := b.Write([]byte(part))
				must(t, err)
			}
			must(t, b.CloseWrite())
			got, err = io.ReadAll(a)
			if err != nil || string(got) != "answer" {
				t.Fatalf("got %q, %v, want answer", got, err)
			}
			must(t, <-result)
			must(t, <-result)
		})
	}
}

func TestResetCrossesTheTunnel(t *testing.T) {
	for _, from := range []string{"client", "server"} {
		t.Run("from "+from, func(t *testing.T) {
			_, open := proxied(t)
			a, b, result := open()
			if from == "server" {
				a, b = b, a
			}
			_, err := a.Write([]byte("x"))
			must(t, err)
			_, err = io.ReadFull(b, make([]byte, 1))
			must(t, err)
			must(t, a.SetLinger(0))
			must(t, a.Close())
			_, err = b.Read(make([]byte, 1))
			if !isReset(err) {
				t.Errorf("peer of a reset reads %v, want connection reset", err)
			}
			var codes []error
			for range 2 {
				codes = append(codes, <-result)
			}
			var se *StreamError
			if !errors.As(errors.Join(codes...), &se) || se.Code != CodeConnect {
				t.Errorf("got %v, want a stream error CONNECT_ERROR", codes)
			}
		})
	}
}

func TestServerDeathResetsTheApp(t *testing.T) {
	e, open := proxied(t)
	client, _, _ := open()
	e.srv.cancel()
	_, err := client.Read(make([]byte, 1))
	if !isReset(err) {
		t.Errorf("got %v, want connection reset", err)
	}
}

func TestSlowReaderHoldsAtMostOneWindow(t *testing.T) {
	release := make(chan struct{})
	var sum [32]byte
	done := make(chan struct{})
	e := newEnv(t, func(_ context.Context, r *ServerStream) {
		defer close(done)
		s, err := r.Accept(nil)
		if err != nil {
			return
		}
		<-release
		sum = digest(t, s)
		_ = s.CloseWrite()
	})
	s := e.mustConnect(t)
	const size = 32 << 20
	var sent atomic.Int64
	wrote := make(chan error, 1)
	go func() {
		_, err := s.ReadFrom(io.TeeReader(source64(size, 9), countTo{&sent}))
		_ = s.CloseWrite()
		wrote <- err
	}()
	eventually(t, func() bool { return sent.Load() >= ourStreamWindow })
	time.Sleep(50 * time.Millisecond) // what must not happen needs time to not happen
	if got := sent.Load(); got > ourStreamWindow+2*bigBlock {
		t.Errorf("%d bytes taken from the sender while nobody reads, want about one window, %d", got, ourStreamWindow)
	}
	close(release)
	must(t, <-wrote)
	<-done
	if want := digest(t, source64(size, 9)); sum != want {
		t.Error("digests differ")
	}
}

type countTo struct{ n *atomic.Int64 }

func (c countTo) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return len(p), nil
}

func TestStalledStreamDoesNotStallOthers(t *testing.T) {
	hold := make(chan struct{})
	e := newEnv(t, func(ctx context.Context, r *ServerStream) {
		if r.Header("mode") == "stall" {
			if _, err := r.Accept(nil); err == nil {
				<-hold
			}
			return
		}
		echo(ctx, r)
	})
	defer close(hold)
	stalled, _, err := e.connect(t.Context(), Header{"mode", "stall"})
	must(t, err)
	defer stalled.Close()
	go func() { _, _ = stalled.ReadFrom(source64(8<<20, 1)) }()
	eventually(t, func() bool { stalled.mu.Lock(); defer stalled.mu.Unlock(); return stalled.sendWindow == 0 })
	s := e.mustConnect(t)
	go func() { _, _ = s.ReadFrom(source64(8<<20, 2)); _ = s.CloseWrite() }()
	if got, want := digest(t, s), digest(t, source64(8<<20, 2)); got != want {
		t.Error("digests differ")
	}
}

func TestSmallFramesShareBlocksWhenTheReaderIsBehind(t *testing.T) {
	s := &Stream{c: &conn{}}
	s.rcond.L = &s.mu
	for range 10_000 {
		b := newBlock(100)
		b.append(bytes.Repeat([]byte{'x'}, 100))
		s.deliver(b)
	}
	held := 0
	for b := s.head; b != nil; b = b.next {
		held += len(b.b)
	}
	if held > 1_100_000 {
		t.Errorf("1 MB of data in small frames holds %d bytes", held)
	}
}

func TestDeadlines(t *testing.T) {
	e := newEnv(t, func(ctx context.Context, r *ServerStream) {
		if _, err := r.Accept(nil); err == nil {
			<-ctx.Done()
		}
	})
	s := e.mustConnect(t)
	must(t, s.SetReadDeadline(time.Now().Add(20*time.Millisecond)))
	if _, err := s.Read(make([]byte, 1)); !isTimeout(err) {
		t.Errorf("read: got %v, want timeout", err)
	}
	must(t, s.SetWriteDeadline(time.Now().Add(50*time.Millisecond)))
	if _, err := s.Write(make([]byte, 2*ourStreamWindow)); !isTimeout(err) {
		t.Errorf("write into a full window: got %v, want timeout", err)
	}
	must(t, s.Close())
	if _, err := s.Read(make([]byte, 1)); err == nil {
		t.Error("read after Close succeeds")
	}
}

// TestStreamsNobodyReadsDoNotStallOthers: together they are sent far more than the connection's window. A stream that was
// there before and a new one go on.
func TestStreamsNobodyReadsDoNotStallOthers(t *testing.T) {
	for _, direction := range []string{"up", "down"} {
		t.Run(direction, func(t *testing.T) {
			e := newEnv(t, func(ctx context.Context, r *ServerStream) {
				switch r.Header("mode") {
				case "up":
					if _, err := r.Accept(nil); err == nil {
						<-ctx.Done()
					}
				case "down":
					if s, err := r.Accept(nil); err == nil {
						_, _ = s.ReadFrom(source64(1<<40, 1))
					}
				default:
					echo(ctx, r)
				}
			})
			old := e.mustConnect(t)
			for range ourConnWindow/ourStreamWindow + 1 {
				s, _, err := e.connect(t.Context(), Header{"mode", direction})
				must(t, err)
				defer s.Close()
				if direction == "down" {
					eventually(t, func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.recv.credit == 0 })
					continue
				}
				go func() { _, _ = s.ReadFrom(source64(1<<40, 1)) }()
				eventually(t, func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.sendWindow == 0 })
			}
			echoesBack(t, old, 8<<20)
			s := e.mustConnect(t)
			if s.c != old.c {
				t.Error("the new stream is on another connection")
			}
			echoesBack(t, s, 1<<20)
		})
	}
}

// TestNewStreamsAvoidAStalledConnection: the peer gives no window back.
func TestNewStreamsAvoidAStalledConnection(t *testing.T) {
	rs := newRawServer(t)
	result := rs.connectAsync(t.Context())
	p := rs.accept(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
	p.headers(p.request(), false, ":status", "200")
	r := <-result
	must(t, r.err)
	defer r.s.Close()
	go func() { _, _ = io.Copy(io.Discard, p.conn) }()
	go func() { _, _ = r.s.ReadFrom(source64(1<<20, 1)) }()
	eventually(t, r.s.c.flow.stalled)
	result = rs.connectAsync(t.Context())
	second := rs.accept()
	second.headers(second.request(), false, ":status", "200")
	r = <-result
	must(t, r.err)
	must(t, r.s.Close())
}

// TestWindowsGrowWithinBounds: a stream that is read gets a large window, all together no more than the connection lends,
// and get it anew when the stream is closed.
func TestWindowsGrowWithinBounds(t *testing.T) {
	e := newEnv(t, func(_ context.Context, r *ServerStream) {
		if s, err := r.Accept(nil); err == nil {
			_, _ = s.ReadFrom(source64(1<<40, 1))
		}
	})
	sizes := 0
	var streams []*Stream
	for range 6 {
		s := e.mustConnect(t)
		streams = append(streams, s)
		size := func() int { s.mu.Lock(); defer s.mu.Unlock(); return s.recv.size }
		for size() < maxStreamWindow && s.c.loans.Load() > 0 {
			_, err := io.CopyN(io.Discard, s, ourStreamWindow)
			must(t, err)
		}
		sizes += size() - ourStreamWindow
	}
	if streams[0].recv.size != maxStreamWindow || sizes != windowLoans {
		t.Errorf("got a window of %d, lent %d, want %d and %d", streams[0].recv.size, sizes, maxStreamWindow, windowLoans)
	}
	c := streams[0].c
	for _, s := range streams {
		must(t, s.Close())
	}
	if got := c.loans.Load(); got != windowLoans {
		t.Errorf("after Close: %d left to lend, want %d", got, windowLoans)
	}
}

func TestReceivedDataWaitsInBlocksThatFit(t *testing.T) {
	for _, n := range []int{1, smallBlock, 5_000, 17_000, halfBlock + 1, 70_000, midBlock} {
		b := newBlock(midBlock)
		b.append(make([]byte, n))
		fit, _ := b.fitted()
		if fit.len() != n || len(fit.b) != blockSizes[sizeClass(n)] {
			t.Errorf("%d bytes: got %d in a block of %d", n, fit.len(), len(fit.b))
		}
	}
}

// TestStreamCarriesAnotherConnection is double HBONE: TLS and HTTP/2 inside a stream.
func TestStreamCarriesAnotherConnection(t *testing.T) {
	ca := newCA(t)
	inner := &Server{TLS: ca.server(t), Handler: echo}
	e := newEnv(t, func(ctx context.Context, r *ServerStream) {
		if s, err := r.Accept(nil); err == nil {
			_ = inner.ServeConn(ctx, s)
		}
	})
	through := func(ctx context.Context) (net.Conn, error) {
		s, _, err := e.connect(ctx)
		return s, err
	}
	pool := NewPool(PoolConfig{})
	s, _, err := pool.Connect(t.Context(), Key{Source: "inner"}, through, ca.client(t), ConnectRequest{Authority: "svc.demo:80"})
	must(t, err)
	echoesBack(t, s, 8<<20)
	must(t, pool.Close(t.Context()))
}

// TestGatheredDataIsHandedOverBeforeWaiting: what looked like more data may be a key update.
func TestGatheredDataIsHandedOverBeforeWaiting(t *testing.T) {
	window := recvWindow{size: 1 << 20, credit: 1 << 20}
	c := &conn{}
	s := &Stream{c: c, recv: window, remoteEnd: true}
	s.rcond.L, s.wcond.L = &s.mu, &s.mu
	r := &reader{c: c, gather: newBlock(pageBlock), gatherFor: s}
	r.gather.append([]byte("before "))
	r.settle()
	if s.head == nil || string(s.head.data()) != "before " {
		t.Fatal("gathered data was not handed over")
	}
	r.settle() // nothing new: nothing handed over twice
	r.gather.append([]byte("after"))
	r.commit()
	got, err := io.ReadAll(s)
	if err != nil || string(got) != "before after" {
		t.Errorf("got %q, %v, want \"before after\"", got, err)
	}
}
