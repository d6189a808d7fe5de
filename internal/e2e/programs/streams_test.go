// SPDX-License-Identifier: Apache-2.0

package programs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

const (
	trickledPort = 7200 + iota
	halfClosePort
	resetPort
	nobodyPort
)

// blockBytes are what one side still sends when the other has ended.
const blockBytes = 8<<20 + 7

// meet connects the client's pod to a listener in the server's.
func (p *place) meet(t *testing.T, to netip.AddrPort) (client, server *net.TCPConn) {
	t.Helper()
	l, err := p.Listen(p.server.NS, fmt.Sprintf("[::]:%d", to.Port()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	_ = l.(*net.TCPListener).SetDeadline(time.Now().Add(effect))
	c, err := p.DialTimeout(p.client.NS, to.String(), effect)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	for _, c := range []net.Conn{c, a} {
		_ = c.SetDeadline(time.Now().Add(commandTimeout))
	}
	return c.(*net.TCPConn), a.(*net.TCPConn)
}

// TestOneByteAtATime sends each byte in a segment of its own, and waits for its echo before the next.
func TestOneByteAtATime(t *testing.T) {
	t.Parallel()
	p := enter(t)
	p.overBoth(trickledPort, 1, func(t *testing.T, to netip.AddrPort) {
		client, server := p.meet(t, to) // Go sets TCP_NODELAY
		go func() {
			var b [1]byte
			for {
				if _, err := server.Read(b[:]); err != nil {
					_ = server.CloseWrite()
					return
				}
				_, _ = server.Write(b[:])
			}
		}()
		want, got := randomBytes(2000), make([]byte, 2000)
		for i := range want {
			if _, err := client.Write(want[i : i+1]); err != nil {
				t.Fatalf("byte %d: %v", i, err)
			}
			if _, err := io.ReadFull(client, got[i:i+1]); err != nil {
				t.Fatalf("byte %d: %v", i, err)
			}
		}
		if !bytes.Equal(got, want) {
			t.Error("the echo differs")
		}
		closeBoth(t, client, server)
	})
}

// closeBoth ends a connection in order.
func closeBoth(t *testing.T, client, server *net.TCPConn) {
	t.Helper()
	if err := client.CloseWrite(); err != nil {
		t.Error(err)
	}
	if n, err := client.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("at the end: read %d bytes, %v, want the end", n, err)
	}
	_, _ = client.Close(), server.Close()
}

// TestHalfClose: one side ends; the other sees that and still sends, and every byte comes, then an end.
func TestHalfClose(t *testing.T) {
	t.Parallel()
	p := enter(t)
	p.overBoth(halfClosePort, 2, func(t *testing.T, to netip.AddrPort) {
		for _, who := range []string{"client", "server"} {
			t.Run(who+" first", func(t *testing.T) {
				first, second := p.meet(t, to)
				if who == "server" {
					first, second = second, first
				}
				halfClose(t, first, second)
			})
		}
	})
}

func halfClose(t *testing.T, first, second *net.TCPConn) {
	request, response := randomBytes(blockBytes), randomBytes(blockBytes)
	sent := make(chan error, 2)
	go func() {
		_, err := first.Write(request)
		sent <- errors.Join(err, first.CloseWrite())
	}()
	if got, err := io.ReadAll(second); err != nil || !bytes.Equal(got, request) {
		t.Fatalf("before the first end: %d of %d bytes, or others: %v", len(got), len(request), err)
	}
	go func() {
		_, err := second.Write(response)
		sent <- errors.Join(err, second.CloseWrite())
	}()
	if got, err := io.ReadAll(first); err != nil || !bytes.Equal(got, response) {
		t.Fatalf("after the first end: %d of %d bytes, or others: %v", len(got), len(response), err)
	}
	if err := errors.Join(<-sent, <-sent); err != nil {
		t.Error(err)
	}
	_, _ = first.Close(), second.Close()
}

// TestResetInTheMiddle: while both sides send, one resets; the other must see a reset, after however many bytes.
func TestResetInTheMiddle(t *testing.T) {
	t.Parallel()
	p := enter(t)
	p.overBoth(resetPort, 4, func(t *testing.T, to netip.AddrPort) {
		for _, who := range []string{"client", "server"} {
			t.Run(who+" resets", func(t *testing.T) {
				client, server := p.meet(t, to)
				if who == "client" {
					resetInTheMiddle(t, client, server)
				} else {
					resetInTheMiddle(t, server, client)
				}
			})
			t.Run(who+" resets when all has come", func(t *testing.T) {
				client, server := p.meet(t, to)
				if who == "client" {
					resetWhenQuiet(t, client, server)
				} else {
					resetWhenQuiet(t, server, client)
				}
			})
		}
	})
}

func resetInTheMiddle(t *testing.T, first, second *net.TCPConn) {
	wrote := make(chan error, 1)
	go func() { // until the reset
		block := make([]byte, 64<<10)
		for {
			if _, err := second.Write(block); err != nil {
				wrote <- err
				return
			}
		}
	}()
	if _, err := io.CopyN(io.Discard, first, 4<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Write([]byte("in the middle")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(second, make([]byte, 13)); err != nil {
		t.Fatal(err)
	}
	_ = first.SetLinger(0)
	_ = first.Close()
	werr := <-wrote
	_, rerr := second.Read(make([]byte, 1))
	// The kernel tells of a reset once, to whichever call comes first.
	if !errors.Is(werr, unix.ECONNRESET) && !errors.Is(rerr, unix.ECONNRESET) {
		t.Errorf("after a reset: write got %v, read got %v, want %v", werr, rerr, unix.ECONNRESET)
	}
	if !errors.Is(werr, unix.ECONNRESET) && !errors.Is(werr, unix.EPIPE) {
		t.Errorf("after a reset: write got %v", werr)
	}
	_ = second.Close()
}

// resetWhenQuiet: with unread data the kernel would answer any close with a reset; here nothing is on its way.
func resetWhenQuiet(t *testing.T, first, second *net.TCPConn) {
	for _, way := range [][2]*net.TCPConn{{first, second}, {second, first}} {
		if _, err := way[0].Write([]byte("in the middle")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(way[1], make([]byte, 13)); err != nil {
			t.Fatal(err)
		}
	}
	_ = first.SetLinger(0)
	_ = first.Close()
	if _, err := second.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("after a reset: got %v, want %v", err, unix.ECONNRESET)
	}
	_ = second.Close()
}

// TestNobodyListens: the app must see a refusal, in connect or as a reset after it; not an end, and not silence.
func TestNobodyListens(t *testing.T) {
	t.Parallel()
	p := enter(t)
	for _, family := range families {
		t.Run(fmt.Sprintf("IPv%d", family), func(t *testing.T) {
			to := at(p.server, family, nobodyPort)
			if err := p.refusal(to); !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("got %v, want a refusal or a reset", err)
			}
			// Both nodes say so: the server's that nobody listens, and that it was asked in mutual TLS.
			for _, direction := range []string{"outbound", "inbound"} {
				node := map[string]string{"outbound": "ztunnel-node1", "inbound": "ztunnel-node2"}[direction]
				testutil.Eventually(t, logged, func() error {
					if len(p.Lines(node, `"direction":"`+direction+`"`, `"`+to.String()+`"`, `"error":`, `sa/client"`)) == 0 {
						return fmt.Errorf("no %s line with an error about %v in the log of %s", direction, to, node)
					}
					return nil
				})
			}
		})
	}
}

// refusal is how the app learns that nobody listens; deadlines of its own are what a user would wait at most.
func (p *place) refusal(to netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(p.t.Context(), effect)
	defer cancel()
	c, err := p.Dial(ctx, p.client.NS, to.String())
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(effect))
	n, err := c.Read(make([]byte, 1))
	if err == nil {
		err = fmt.Errorf("read %d bytes", n)
	}
	return err
}

// echoed sends random bytes from the client's pod to an echo server and wants them back.
func (p *place) echoed(to string, size int) error {
	c, err := p.DialTimeout(p.client.NS, to, effect)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(commandTimeout))
	return echoBlock(c, size)
}

// echoBlock sends random bytes, reads as many while it does, and wants the same.
func echoBlock(c net.Conn, size int) error {
	want, got := randomBytes(size), make([]byte, size)
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(want)
		sent <- err
	}()
	n, err := io.ReadFull(c, got)
	if err != nil {
		return fmt.Errorf("after %d of %d bytes: %w", n, size, err)
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("the echo of %d bytes differs", size)
	}
	return <-sent
}
