// SPDX-License-Identifier: Apache-2.0

package bpf

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

	"github.com/sluice-mesh/sluice/internal/testutil"
)

func TestOutboundReachesTheProxy(t *testing.T) {
	w := newWorld(t)
	client, server := w.enrol(t, w.host.Pod(t, "client")), w.host.Pod(t, "server")
	w.mesh(t, server)
	eachFamily(t, func(t *testing.T, family string) {
		server.Echo(t, "server", netip.AddrPortFrom(server.Addr(family), 80).String())
		before := client.count(t, VerdictCaptured)
		for _, port := range []uint16{80, 81, 15001, 15006, 15008} {
			addr := netip.AddrPortFrom(server.Addr(family), port)
			wantAnswer(t, client.NS, addr, "outbound@"+addr.String(), client.Addr(family))
		}
		if got, want := client.count(t, VerdictCaptured)-before, uint64(5); got != want {
			t.Errorf("captured: got %d, want %d", got, want)
		}
	})
	if got := client.count(t, VerdictDropLeak); got != 0 {
		t.Errorf("guard dropped %d", got)
	}
}

func TestStrangersAreReachedDirectly(t *testing.T) {
	w := newWorld(t)
	client, outside := w.enrol(t, w.host.Pod(t, "client")), w.host.Pod(t, "outside")
	w.mesh(t)
	eachFamily(t, func(t *testing.T, family string) {
		addr := netip.AddrPortFrom(outside.Addr(family), 80)
		outside.Echo(t, "outside", addr.String())
		wantAnswer(t, client.NS, addr, "outside", client.Addr(family))
		_, err := client.AskFrom(netip.AddrPortFrom(outside.Addr(family), 81))
		if !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("closed port: got %v, want %v", err, unix.ECONNREFUSED)
		}
		wantTransfer(t, client.NS, addr, "outside", 200_000)
	})
	client.wantVerdict(t, VerdictPassthrough, 6)
	for _, v := range []Verdict{VerdictCaptured, VerdictOutbound, VerdictDropStray, VerdictStrayPassthrough} {
		if got := client.count(t, v); got != 0 {
			t.Errorf("%v: got %d, want 0", v, got)
		}
	}
}

func TestUnknownDestinationsAreCaptured(t *testing.T) {
	w := newWorld(t)
	client, outside := w.enrol(t, w.host.Pod(t, "client")), w.host.Pod(t, "outside")
	eachFamily(t, func(t *testing.T, family string) {
		addr := netip.AddrPortFrom(outside.Addr(family), 80)
		wantAnswer(t, client.NS, addr, "outbound@"+addr.String(), client.Addr(family))
	})
}

func TestCaptureAllCapturesStrangers(t *testing.T) {
	w := newWorld(t)
	client, outside := w.enrol(t, w.host.Pod(t, "client"), func(c *PodConfig) { c.CaptureAll = true }), w.host.Pod(t, "outside")
	w.mesh(t)
	addr := netip.AddrPortFrom(outside.Addr4, 80)
	wantAnswer(t, client.NS, addr, "outbound@"+addr.String(), client.Addr4)
}

func TestV4MappedSocketsAreCapturedAndPassed(t *testing.T) {
	w := newWorld(t)
	client, server, outside := w.enrol(t, w.host.Pod(t, "client")), w.host.Pod(t, "server"), w.host.Pod(t, "outside")
	w.mesh(t, server)
	echo := outside.Echo(t, "outside", netip.AddrPortFrom(outside.Addr4, 80).String())
	member := netip.AddrPortFrom(server.Addr4, 80)
	for addr, want := range map[netip.AddrPort]string{member: "outbound@" + member.String(), echo.Addr: "outside"} {
		conn := dialV4Mapped(t, client.NS, addr)
		if got, err := testutil.Ask(conn); err != nil || got.Name != want {
			t.Errorf("%v: got %q, %v, want %q", addr, got.Name, err, want)
		}
		tag, err := w.SocketTag(connFD(t, conn))
		if wantTag := map[bool]Tag{true: TagLocal, false: TagPass}[addr == member]; err != nil || tag != wantTag {
			t.Errorf("%v: tag: got %v, %v, want %v", addr, tag, err, wantTag)
		}
	}
}

// dialV4Mapped connects an AF_INET6 socket to an IPv4 address.
func dialV4Mapped(t *testing.T, ns *testutil.NS, addr netip.AddrPort) net.Conn {
	t.Helper()
	var fd int
	ns.MustDo(t, func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Connect(fd, &unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()})
	})
	return connOf(t, fd)
}

func TestTaggedSocketsAreExempt(t *testing.T) {
	w := newWorld(t)
	client, server := w.enrol(t, w.host.Pod(t, "client")), w.host.Pod(t, "server")
	w.mesh(t, server)
	eachFamily(t, func(t *testing.T, family string) {
		addr := netip.AddrPortFrom(server.Addr(family), HBONEPort)
		server.Echo(t, "server", addr.String())
		d := &net.Dialer{Control: client.proxy.prepare, Timeout: time.Second}
		conn, err := client.DialWith(context.Background(), d, "tcp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		if got, err := testutil.Ask(conn); err != nil || got.Name != "server" {
			t.Errorf("got %q, %v, want server", got.Name, err)
		}
	})
}

func TestFastOpenIsCaptured(t *testing.T) {
	w := newWorld(t)
	client, server := w.enrol(t, w.host.Pod(t, "client")), w.host.Pod(t, "server")
	w.mesh(t, server)
	client.Sysctl(t, "net.ipv4.tcp_fastopen", "5") // client, without a cookie
	addr := netip.AddrPortFrom(server.Addr4, 80)
	var fd int
	client.MustDo(t, func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Sendto(fd, []byte("early\n"), unix.MSG_FASTOPEN, &unix.SockaddrInet4{Port: 80, Addr: addr.Addr().As4()})
	})
	conn := connOf(t, fd)
	want := fmt.Sprintf("outbound@%v %v\nearly\n", addr, conn.LocalAddr())
	got := make([]byte, len(want))
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
}

// wantTransfer sends n random bytes to an Echo, closes its half, and reads them all back.
func wantTransfer(t *testing.T, from *testutil.NS, addr netip.AddrPort, name string, n int) {
	t.Helper()
	conn, err := from.Dial(context.Background(), "tcp", addr.String())
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = conn.Close() }()
	if got, err := testutil.Ask(conn); err != nil || got.Name != name {
		t.Errorf("got %q, %v, want %q", got.Name, err, name)
		return
	}
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	sent := make([]byte, n)
	_, _ = rand.Read(sent)
	go func() {
		_, _ = conn.Write(sent)
		_ = conn.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(conn)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("transfer to %v: got %d bytes back, %v, want the %d sent", addr, len(got), err, n)
	}
}
