// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"io"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/testutil"
	"github.com/sluice-mesh/sluice/ztunnel/inpod"
	"github.com/sluice-mesh/sluice/ztunnel/telemetry"
)

// quiet drops log lines after formatting them.
func (w *world) quiet() {
	levels, err := telemetry.ParseLevels("info")
	if err != nil {
		w.t.Fatal(err)
	}
	w.proxy.Access = telemetry.NewAccessLog(telemetry.NewLogger(io.Discard, telemetry.Text, levels))
}

// BenchmarkNewConnection opens a connection, sends a byte there and back, and closes it. "direct" is the same between two
// pods outside the mesh: its allocations are the benchmark's own, which the others have too.
func BenchmarkNewConnection(b *testing.B) {
	w := newWorld(b)
	w.quiet()
	other := w.host.Pod(b, "other")
	for name, ends := range map[string][2]*testutil.Pod{
		"mtls": {w.client.Pod, w.server.Pod}, "plaintext": {w.legacy, w.server.Pod}, "direct": {w.legacy, other},
	} {
		b.Run(name, func(b *testing.B) {
			l := ends[1].Listen(b, "tcp4", netip.AddrPortFrom(ends[1].Addr4, 0).String())
			go answer(l)
			dialer := w.untagged(ends[0])
			to := addrPort(l.Addr())
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := exchange(dialer, to); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

func answer(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			_, _ = io.Copy(conn, conn)
		}()
	}
}

func exchange(n network, to netip.AddrPort) error {
	conn, err := n.Dial(context.Background(), netip.Addr{}, to)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetLinger(0) // no TIME_WAIT: the benchmark would run out of ports
	if _, err := conn.Write([]byte("x")); err != nil {
		return err
	}
	_, err = io.ReadFull(conn, make([]byte, 1))
	return err
}

// untagged dials from inside a pod like its applications do.
func (w *world) untagged(p *testutil.Pod) network {
	w.t.Helper()
	fd, err := unix.Open(p.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	pod, err := inpod.NewPod(inpod.Info{}, fd, inpod.NewSockets(w.t.Context(), func(int) error { return nil }))
	if err != nil {
		w.t.Fatal(err)
	}
	return pod
}

// BenchmarkBulk moves data from pod to pod, both sides of the mesh in this process. Time and allocations are per MB;
// the benchmark's own, two buffers, are made before.
func BenchmarkBulk(b *testing.B) {
	w := newWorld(b)
	w.quiet()
	const chunk = 1_000_000
	for _, path := range []struct {
		name string
		from *testutil.Pod
	}{{"mtls", w.client.Pod}, {"plaintext", w.legacy}} {
		b.Run(path.name, func(b *testing.B) {
			l := w.server.Listen(b, "tcp4", netip.AddrPortFrom(w.server.Addr4, 0).String())
			conn, err := w.untagged(path.from).Dial(b.Context(), netip.Addr{}, addrPort(l.Addr()))
			if err != nil {
				b.Fatal(err)
			}
			defer conn.Close()
			sink, err := l.Accept()
			if err != nil {
				b.Fatal(err)
			}
			defer sink.Close()
			in, out := make([]byte, chunk), make([]byte, chunk)
			if err := moveChunks(conn, sink, in, out, 1); err != nil { // opens what is opened once
				b.Fatal(err)
			}
			b.SetBytes(chunk)
			b.ReportAllocs()
			b.ResetTimer()
			if err := moveChunks(conn, sink, in, out, b.N); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// moveChunks sends in n times and reads as much.
func moveChunks(from io.Writer, to io.Reader, in, out []byte, n int) error {
	sent := make(chan error, 1)
	go func() {
		var err error
		for i := 0; i < n && err == nil; i++ {
			_, err = from.Write(in)
		}
		sent <- err
	}()
	for range n {
		if _, err := io.ReadFull(to, out); err != nil {
			return err
		}
	}
	return <-sent
}
