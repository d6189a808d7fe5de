// SPDX-License-Identifier: Apache-2.0

package strange

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// way is one direction between two pods, in the mesh or not.
type way struct {
	name   string
	dial   dialer
	listen func() (net.Listener, error)
	to     func(port uint16) netip.AddrPort
}

// ways are to and from the strange pod, with a pod of the mesh and with one outside it.
func (s *strange) ways(family int) []way {
	var all []way
	own := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(s.Addr(family), port) }
	listen := func(ns string) func() (net.Listener, error) {
		return func() (net.Listener, error) { return s.w.Listen(ns, "[::]:0") }
	}
	for _, other := range []struct {
		name string
		at   netip.Addr
	}{{"peer", s.w.peer.Addr(family)}, {"legacy", s.w.legacy.Addr(family)}} {
		there := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(other.at, port) }
		ns := s.w.NS(other.name)
		all = append(all,
			way{"to " + other.name, plain(s.NS), listen(ns), there},
			way{"from " + other.name, plain(namespaceOf(ns)), listen(s.Pod.NS), own})
	}
	return all
}

// meet connects client and server.
func (w way) meet(t *testing.T) (client, server *net.TCPConn) {
	t.Helper()
	l, err := w.listen()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	_ = l.(*net.TCPListener).SetDeadline(time.Now().Add(effect))
	ctx, cancel := context.WithTimeout(t.Context(), effect)
	defer cancel()
	c, err := w.dial(ctx, w.to(uint16(l.Addr().(*net.TCPAddr).Port)))
	if err != nil {
		t.Fatalf("%s: %v", w.name, err)
	}
	a, err := l.Accept()
	if err != nil {
		t.Fatalf("%s: %v", w.name, err)
	}
	client, server = c.(*net.TCPConn), a.(*net.TCPConn)
	for _, c := range []*net.TCPConn{client, server} {
		_ = c.SetDeadline(time.Now().Add(effect))
		t.Cleanup(func() { _ = c.Close() })
	}
	return client, server
}

func TestStreamsEndAsTheyWouldWithoutUs(t *testing.T) {
	s := newStrange(t, "stream")
	for _, family := range []int{4, 6} {
		for _, w := range s.ways(family) {
			t.Run(fmt.Sprintf("%s over IPv%d", w.name, family), func(t *testing.T) {
				t.Run("server speaks first", func(t *testing.T) { serverFirst(t, w) })
				t.Run("client ends first", func(t *testing.T) { client, server := w.meet(t); halfClose(t, client, server) })
				t.Run("server ends first", func(t *testing.T) { client, server := w.meet(t); halfClose(t, server, client) })
				t.Run("client resets", func(t *testing.T) { client, server := w.meet(t); reset(t, client, server) })
				t.Run("server resets", func(t *testing.T) { client, server := w.meet(t); reset(t, server, client) })
			})
		}
	}
}

func serverFirst(t *testing.T, w way) {
	client, server := w.meet(t)
	if _, err := server.Write([]byte("220 ready\r\n")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 11)
	if _, err := io.ReadFull(client, got); err != nil || string(got) != "220 ready\r\n" {
		t.Fatalf("got %q, %v", got, err)
	}
	if _, err := client.Write([]byte("QUIT\r\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(server, got[:6]); err != nil || string(got[:6]) != "QUIT\r\n" {
		t.Fatalf("got %q, %v", got[:6], err)
	}
}

// halfClose: one side ends at once; the other still sends a megabyte, every byte of which must come, then an end.
func halfClose(t *testing.T, first, second *net.TCPConn) {
	if err := first.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if n, err := second.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("after the first end: read %d bytes, %v, want the end", n, err)
	}
	block := make([]byte, blockBytes)
	_, _ = rand.Read(block)
	sent := make(chan error, 1)
	go func() {
		_, err := second.Write(block)
		sent <- errors.Join(err, second.CloseWrite())
	}()
	got, err := io.ReadAll(first)
	if err := errors.Join(err, <-sent); err != nil || !bytes.Equal(got, block) {
		t.Fatalf("got %d of %d bytes, or others: %v", len(got), len(block), err)
	}
}

// reset: what came before it is delivered, and the other side sees a reset, not an end.
func reset(t *testing.T, first, second *net.TCPConn) {
	if _, err := first.Write([]byte("last words")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 10)
	if _, err := io.ReadFull(second, got); err != nil {
		t.Fatal(err)
	}
	_ = first.SetLinger(0)
	_ = first.Close()
	if _, err := second.Read(got); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("after a reset: got %v, want %v", err, unix.ECONNRESET)
	}
}
