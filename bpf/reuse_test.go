// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// TestPortsMayBeUsedAgain: a SYN that meets a TIME_WAIT socket of the proxy's opens a connection.
func TestPortsMayBeUsedAgain(t *testing.T) {
	w := newWorld(t)
	client, server, member := w.enrol(t, w.host.Pod(t, "client")), w.enrol(t, w.host.Pod(t, "server")), w.host.Pod(t, "member")
	w.mesh(t, member) // but not server, so that its inbound side is reached in clear
	eachFamily(t, func(t *testing.T, family string) {
		for i, tt := range []struct {
			waits *enrolled
			to    netip.AddrPort
			role  string
		}{
			{client, netip.AddrPortFrom(member.Addr(family), 80), "outbound"},
			{server, netip.AddrPortFrom(server.Addr(family), 80), "inbound"},
			{server, netip.AddrPortFrom(server.Addr(family), HBONEPort), "hbone"},
		} {
			from := netip.AddrPortFrom(client.Addr(family), uint16(33000+i))
			d := &net.Dialer{Timeout: 2 * time.Second, LocalAddr: net.TCPAddrFromAddrPort(from), Control: reuseAddr}
			for round := range 5 {
				conn, err := client.DialWith(context.Background(), d, "tcp", tt.to.String())
				if err != nil {
					t.Errorf("%s, round %d: %v", tt.role, round, err)
					break
				}
				got, err := testutil.Ask(conn)
				if err != nil || got.Name != tt.role+"@"+tt.to.String() {
					t.Errorf("%s, round %d: got %q, %v", tt.role, round, got.Name, err)
				}
				beHungUp(t, conn)
				testutil.Eventually(t, 20*time.Second, func() error { return inTimeWait(tt.waits.NS, tt.to, from) })
			}
		}
	})
}

func reuseAddr(_, _ string, raw syscall.RawConn) (err error) {
	return errors.Join(raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}), err)
}

// beHungUp closes after the other side did, so TIME_WAIT is there.
func beHungUp(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := io.WriteString(c, hangUp); err != nil {
		t.Error(err)
	}
	if _, err := io.Copy(io.Discard, c); err != nil {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// inTimeWait checks that the namespace has a TIME_WAIT socket with these ends.
func inTimeWait(ns *testutil.NS, local, remote netip.AddrPort) error {
	family := uint8(unix.AF_INET6)
	if local.Addr().Is4() {
		family = unix.AF_INET
	}
	return ns.Do(func() error {
		sockets, err := dumpTCP(family)
		for _, s := range sockets {
			if s.State == netlink.TCP_TIME_WAIT && flowOf(&s.ID) == newFlow(local, remote) {
				return nil
			}
		}
		return errors.Join(err, fmt.Errorf("no TIME_WAIT from %v to %v", local, remote))
	})
}

func TestForcedSYNCookiesWork(t *testing.T) {
	w := newWorld(t)
	server, legacy := w.enrol(t, w.host.Pod(t, "server")), w.host.Pod(t, "legacy")
	server.Sysctl(t, "net.ipv4.tcp_syncookies", "2")
	server.proxy.deliver.Store(true)
	eachFamily(t, func(t *testing.T, family string) {
		app := netip.AddrPortFrom(server.Addr(family), 80)
		server.Echo(t, "app", app.String())
		hbone := netip.AddrPortFrom(server.Addr(family), HBONEPort)
		out := netip.AddrPortFrom(legacy.Addr(family), 80)
		before := cookiesSent(t, server.NS)
		wantAnswer(t, legacy.NS, app, "app", legacy.Addr(family)) // inbound, and delivery
		wantAnswer(t, legacy.NS, hbone, "hbone@"+hbone.String(), legacy.Addr(family))
		wantAnswer(t, server.NS, out, "outbound@"+out.String(), server.Addr(family))
		if got := cookiesSent(t, server.NS) - before; got < 4 {
			t.Errorf("SYN cookies sent: got %d, want at least 4", got)
		}
	})
}
