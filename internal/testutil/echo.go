// SPDX-License-Identifier: Apache-2.0

package testutil

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// askTimeout bounds one Ask; a test that waits longer has lost its connection.
const askTimeout = 5 * time.Second

// Echo is a TCP server that says who it is: on accept it sends "NAME CLIENT-IP:PORT\n", then it echoes what it reads
// until the client's FIN, which it answers with its own.
type Echo struct {
	Name string
	Addr netip.AddrPort
	wg   sync.WaitGroup
}

// Echo starts a server inside the namespace on addr ("10.77.0.2:80", "[::]:80"); port 0 picks one.
func (n *NS) Echo(t testing.TB, name, addr string) *Echo {
	t.Helper()
	l := n.Listen(t, "tcp", addr)
	e := &Echo{Name: name, Addr: netip.MustParseAddrPort(l.Addr().String())}
	e.wg.Add(1)
	go e.serve(l)
	t.Cleanup(func() {
		l.Close() // first: it is what unblocks serve
		e.wg.Wait()
	})
	return e
}

func (e *Echo) serve(l net.Listener) {
	defer e.wg.Done()
	for {
		c, err := l.Accept()
		if errors.Is(err, unix.EMFILE) {
			time.Sleep(pollInterval) // the test has used up its descriptors; accept fails even if nobody waits
			continue
		}
		if err != nil {
			return
		}
		go e.handle(c)
	}
}

func (e *Echo) handle(c net.Conn) {
	defer c.Close()
	fmt.Fprintf(c, "%s %s\n", e.Name, c.RemoteAddr())
	if _, err := io.Copy(c, c); err == nil {
		c.(*net.TCPConn).CloseWrite()
	}
}

// Answer is what an Echo said of itself and of its client.
type Answer struct {
	Name string
	From netip.AddrPort // the client as the server saw it
}

// Ask reads the server's greeting and checks that it echoes. The connection stays open and usable.
func Ask(c net.Conn) (Answer, error) {
	c.SetDeadline(time.Now().Add(askTimeout))
	defer c.SetDeadline(time.Time{})
	line, err := readLine(c)
	if err != nil {
		return Answer{}, fmt.Errorf("read greeting: %w", err)
	}
	name, from, _ := strings.Cut(line, " ")
	peer, err := netip.ParseAddrPort(from)
	if err != nil {
		return Answer{}, fmt.Errorf("greeting %q: %w", line, err)
	}
	a := Answer{Name: name, From: netip.AddrPortFrom(peer.Addr().Unmap(), peer.Port())}
	return a, Ping(c)
}

// Ping sends a line through an open Echo connection, after Ask, and checks that it comes back.
func Ping(c net.Conn) error {
	const want = "ping"
	c.SetDeadline(time.Now().Add(askTimeout))
	defer c.SetDeadline(time.Time{})
	if _, err := fmt.Fprintln(c, want); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	got, err := readLine(c)
	if err != nil {
		return fmt.Errorf("read echo: %w", err)
	}
	if got != want {
		return fmt.Errorf("echo: got %q, want %q", got, want)
	}
	return nil
}

// readLine reads byte by byte, so that nothing after the line is swallowed.
func readLine(r io.Reader) (string, error) {
	line, err := bufio.NewReaderSize(oneByte{r}, 16).ReadString('\n')
	return strings.TrimSuffix(line, "\n"), err
}

type oneByte struct{ r io.Reader }

func (o oneByte) Read(p []byte) (int, error) { return o.r.Read(p[:1]) }

// AskFrom dials addr from inside the namespace, asks and closes.
func (n *NS) AskFrom(addr netip.AddrPort) (Answer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	c, err := n.Dial(ctx, "tcp", addr.String())
	if err != nil {
		return Answer{}, err
	}
	defer c.Close()
	return Ask(c)
}
