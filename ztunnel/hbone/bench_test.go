// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"syscall"
	"testing"
)

// BenchmarkBulk moves data through two Splices and one connection, all in this process:
// app TCP, Splice, TLS, Splice, app TCP.
func BenchmarkBulk(b *testing.B) {
	for _, streams := range []int{1, 8} {
		b.Run(fmt.Sprintf("streams=%d", streams), func(b *testing.B) {
			_, open := proxied(b)
			const chunk = 1 << 20
			var clients, servers []*net.TCPConn
			for range streams {
				c, s, _ := open()
				clients, servers = append(clients, c), append(servers, s)
			}
			data, rooms := make([]byte, chunk), make([][]byte, streams)
			for i := range rooms {
				rooms[i] = make([]byte, chunk)
			}
			b.SetBytes(chunk)
			b.ReportAllocs()
			b.ResetTimer()
			defer reportCPU(b, chunk, "cpu-ns/KB")()
			defer reportAllocs(b, chunk/1e6, "MB")()
			var wg sync.WaitGroup
			for i := range streams {
				n := b.N / streams
				if i < b.N%streams {
					n++
				}
				wg.Add(2)
				go func() { defer wg.Done(); fill(clients[i], n, data) }()
				go func() { defer wg.Done(); drainN(servers[i], int64(n)*chunk, rooms[i]) }()
			}
			wg.Wait()
		})
	}
}

// reportCPU reports the processor time from its call to the call of what it returns, all of this process's, per so many
// bytes: on a busy machine it says more than the time on the clock.
func reportCPU(b *testing.B, n int, unit string) func() {
	before := cpuTime(b)
	return func() { b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N)/(float64(n)/1024), unit) }
}

// reportAllocs reports what this process allocated from its call to the call of what it returns, per unit, of which an
// operation has so many. Both ends of the mesh count.
func reportAllocs(b *testing.B, units float64, unit string) func() {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	return func() {
		runtime.ReadMemStats(&after)
		n := float64(b.N) * units
		b.ReportMetric(float64(after.Mallocs-before.Mallocs)/n, "allocs/"+unit)
		b.ReportMetric(float64(after.TotalAlloc-before.TotalAlloc)/n, "B/"+unit)
	}
}

func cpuTime(b *testing.B) int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

func fill(c *net.TCPConn, n int, buf []byte) {
	for range n {
		if _, err := c.Write(buf); err != nil {
			return
		}
	}
}

func drainN(c *net.TCPConn, n int64, buf []byte) {
	for n > 0 {
		m, err := c.Read(buf)
		n -= int64(m)
		if err != nil {
			return
		}
	}
}

// BenchmarkRequests is keep-alive request and response of 128 bytes each through the whole chain.
func BenchmarkRequests(b *testing.B) {
	for _, streams := range []int{1, 32} {
		b.Run(fmt.Sprintf("streams=%d", streams), func(b *testing.B) {
			_, open := proxied(b)
			var clients []*net.TCPConn
			for range streams {
				c, s, _ := open()
				clients = append(clients, c)
				go func() { _, _ = io.Copy(writerOnly{s}, struct{ io.Reader }{s}) }()
			}
			b.ReportAllocs()
			b.ResetTimer()
			defer reportCPU(b, 1024, "cpu-ns/op")()
			var wg sync.WaitGroup
			for i, c := range clients {
				n := b.N / streams
				if i < b.N%streams {
					n++
				}
				wg.Add(1)
				go func() { defer wg.Done(); pingPong(c, n) }()
			}
			wg.Wait()
		})
	}
}

func pingPong(c *net.TCPConn, n int) {
	buf := make([]byte, 128)
	for range n {
		if _, err := c.Write(buf); err != nil {
			return
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			return
		}
	}
}

// BenchmarkConnect is one CONNECT, its answer and the end of the stream on a warm connection, both ends counted.
func BenchmarkConnect(b *testing.B) {
	e := newEnv(b, func(_ context.Context, r *ServerStream) {
		s, err := r.Accept([]Header{{"baggage", "k8s.namespace.name=demo"}})
		if err != nil {
			return
		}
		_ = s.CloseWrite()
		_, _ = s.WriteTo(io.Discard)
	})
	headers := []Header{
		{"baggage", "k8s.cluster.name=Kubernetes,k8s.namespace.name=demo,k8s.deployment.name=client"},
		{"forwarded", `for="10.0.0.1:4711"`},
		{"traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"},
	}
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		s, _, err := e.connect(ctx, headers...)
		if err != nil {
			b.Fatal(err)
		}
		_ = s.CloseWrite()
		_, _ = s.WriteTo(io.Discard)
		_ = s.Close()
	}
}
