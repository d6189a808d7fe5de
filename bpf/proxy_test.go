// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// Addresses that nobody has, for the proxy's listeners.
var hidden = map[bool]netip.Addr{false: netip.MustParseAddr("203.0.113.1"), true: netip.MustParseAddr("100::1")}

// proxy stands for ztunnel in one pod. A connection to its outbound and HBONE listeners is answered like an Echo's, by
// the name "outbound@ORIGINAL-DESTINATION"; one to its inbound listeners too, or is delivered to the app if deliver is
// set before the first connection.
type proxy struct {
	node      *Node
	pod       *testutil.Pod
	listeners map[Slot]net.Listener
	deliver   atomic.Bool
	accepting sync.WaitGroup
	handling  sync.WaitGroup
	conns     sync.Map // *net.TCPConn, open ones
}

func newProxy(t *testing.T, n *Node, pod *testutil.Pod) *proxy {
	t.Helper()
	x := &proxy{node: n, pod: pod, listeners: map[Slot]net.Listener{}}
	// Ports that no app listens on: a wildcard listener of the app's conflicts with these, hidden address or not.
	ports := map[Slot]uint16{SlotOutbound4: 1, SlotInbound4: 2, SlotHBONE4: 3}
	for _, s := range Slots() {
		role := s
		if s.IsIPv6() {
			role--
		}
		x.listeners[s] = x.listen(t, netip.AddrPortFrom(hidden[s.IsIPv6()], ports[role]))
		x.accepting.Add(1)
		go x.serve(role, x.listeners[s])
	}
	t.Cleanup(x.close)
	return x
}

func (x *proxy) close() {
	for _, l := range x.listeners {
		_ = l.Close()
	}
	x.accepting.Wait()
	x.conns.Range(func(c, _ any) bool {
		_ = c.(*net.TCPConn).Close()
		return true
	})
	x.handling.Wait()
}

func (x *proxy) listen(t *testing.T, addr netip.AddrPort) net.Listener {
	t.Helper()
	lc := net.ListenConfig{Control: x.prepare}
	lc.SetMultipathTCP(false)
	var l net.Listener
	x.pod.MustDo(t, func() (err error) {
		l, err = lc.Listen(context.Background(), "tcp", addr.String())
		return err
	})
	return l
}

// prepare makes a socket of the proxy's: tagged, and free to use any address.
func (x *proxy) prepare(network, _ string, raw syscall.RawConn) error {
	var errs []error
	err := raw.Control(func(p uintptr) {
		fd := int(p)
		errs = append(errs, x.node.TagSocket(fd, TagProxy))
		if network == "tcp6" {
			errs = append(errs, unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1),
				unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_FREEBIND, 1))
		} else {
			errs = append(errs, unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1),
				unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_FREEBIND, 1))
		}
		errs = append(errs, unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1))
	})
	return errors.Join(append(errs, err)...)
}

func (x *proxy) fds(t *testing.T) map[Slot]int {
	t.Helper()
	fds := map[Slot]int{}
	for s, l := range x.listeners {
		fds[s] = fdOf(t, l)
	}
	return fds
}

func (x *proxy) serve(role Slot, l net.Listener) {
	defer x.accepting.Done()
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		conn := c.(*net.TCPConn)
		x.conns.Store(conn, nil)
		x.handling.Go(func() { x.handle(role, conn) })
	}
}

func (x *proxy) handle(role Slot, c *net.TCPConn) {
	defer x.conns.Delete(c)
	defer func() { _ = c.Close() }()
	if role == SlotInbound4 && x.deliver.Load() {
		x.toApp(c)
		return
	}
	name := map[Slot]string{SlotOutbound4: "outbound", SlotInbound4: "inbound", SlotHBONE4: "hbone"}[role]
	_, _ = fmt.Fprintf(c, "%s@%s %s\n", name, unmap(c.LocalAddr()), unmap(c.RemoteAddr()))
	echoAll(c)
}

// hangUp, sent alone, makes a proxy close first.
const hangUp = "hang up"

func echoAll(c *net.TCPConn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := c.Read(buf)
		if err != nil || string(buf[:n]) == hangUp {
			return
		}
		if _, err := c.Write(buf[:n]); err != nil {
			return
		}
	}
}

// toApp delivers: it dials the app from the client's address and copies both ways, with half-close. If the app
// refuses, so does it.
func (x *proxy) toApp(c *net.TCPConn) {
	app, err := x.dialApp(unmap(c.RemoteAddr()).Addr(), unmap(c.LocalAddr()))
	if err != nil {
		_ = c.SetLinger(0)
		return
	}
	defer func() { _ = app.Close() }()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(app, c)
		_ = app.CloseWrite()
	}()
	_, _ = io.Copy(c, app)
	_ = c.CloseWrite()
	<-done
}

func (x *proxy) dialApp(client netip.Addr, app netip.AddrPort) (*net.TCPConn, error) {
	d := &net.Dialer{Control: x.prepare, Timeout: 5 * time.Second, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(client, 0))}
	c, err := x.pod.DialWith(context.Background(), d, "tcp", app.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func unmap(a net.Addr) netip.AddrPort {
	ap := addrPortOf(a)
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
