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
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
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

func TestInboundReachesTheProxy(t *testing.T) {
	w := newWorld(t)
	server, legacy := w.enrol(t, w.host.Pod(t, "server")), w.host.Pod(t, "legacy")
	eachFamily(t, func(t *testing.T, family string) {
		server.Echo(t, "app", netip.AddrPortFrom(server.Addr(family), 80).String())
		for port, role := range map[uint16]string{80: "inbound", 81: "inbound", 15001: "inbound", 15006: "inbound", 15008: "hbone"} {
			addr := netip.AddrPortFrom(server.Addr(family), port)
			wantAnswer(t, legacy.NS, addr, role+"@"+addr.String(), legacy.Addr(family))
		}
	})
}

func TestDeliveryKeepsTheClientsAddress(t *testing.T) {
	w := newWorld(t)
	server, legacy := w.enrol(t, w.host.Pod(t, "server")), w.host.Pod(t, "legacy")
	server.proxy.deliver.Store(true)
	eachFamily(t, func(t *testing.T, family string) {
		addr := netip.AddrPortFrom(server.Addr(family), 80)
		server.Echo(t, "app", addr.String())
		wire := sniff(t, w.host.NS, server.HostIf)
		wantAnswer(t, legacy.NS, addr, "app", legacy.Addr(family))
		for range 10 {
			wantTransfer(t, legacy.NS, addr, "app", 200_000)
		}
		if _, err := legacy.AskFrom(netip.AddrPortFrom(addr.Addr(), 81)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("closed port: got %v, want %v", err, unix.ECONNRESET)
		}
		wire.wantOnly(t, func(f captureFlow) error {
			if wire.clients[legacy.Addr(family)][f.Dport] || f.Src != newAddress(server.Addr(family)) {
				return nil
			}
			return errors.New("not of a connection that a client opened")
		})
	})
	server.wantVerdict(t, VerdictReply, 24)
	server.wantVerdict(t, VerdictLocalFlow, 24)
	if got := server.count(t, VerdictDropStray); got != 0 {
		t.Errorf("drop-stray: got %d, want 0", got)
	}
}

func TestSelfCallsStayInThePod(t *testing.T) {
	w := newWorld(t)
	pod := w.enrol(t, w.host.Pod(t, "pod"))
	eachFamily(t, func(t *testing.T, family string) {
		own := netip.AddrPortFrom(pod.Addr(family), 80)
		pod.Echo(t, "app", own.String())
		wantAnswer(t, pod.NS, own, "app", pod.Addr(family))
		loopback := netip.AddrPortFrom(netip.MustParseAddr(map[string]string{"4": "127.0.0.1", "6": "::1"}[family]), 80)
		pod.Echo(t, "loopback", loopback.String())
		wantAnswer(t, pod.NS, loopback, "loopback", loopback.Addr())
	})
	pod.wantVerdict(t, VerdictLocalFlow, 2)
	pod.wantVerdict(t, VerdictLoopback, 2)
}

func TestAppsMayListenOnTheProxysPorts(t *testing.T) {
	w := newWorld(t)
	pod := w.enrol(t, w.host.Pod(t, "pod"))
	pod.proxy.deliver.Store(true)
	legacy := w.host.Pod(t, "legacy")
	for _, port := range []uint16{15001, 15006, 15008, 15053, 15090} {
		pod.Echo(t, fmt.Sprint("app", port), fmt.Sprintf("[::]:%d", port))
		if port != HBONEPort {
			wantAnswer(t, legacy.NS, netip.AddrPortFrom(pod.Addr4, port), fmt.Sprint("app", port), legacy.Addr4)
		}
	}
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

// TestVanishedSocketsAreReset: whichever end of a captured connection is gone without a word, the other one learns it
// with its next segment. It takes capture to bring the reset back, which no connection's own socket sends.
func TestVanishedSocketsAreReset(t *testing.T) {
	w := newWorld(t)
	pod, member := w.enrol(t, w.host.Pod(t, "pod")), w.host.Pod(t, "member")
	w.mesh(t, member)
	eachFamily(t, func(t *testing.T, family string) {
		for _, dialerGoes := range []bool{true, false} {
			dialer, accepted := outboundPair(t, pod, netip.AddrPortFrom(member.Addr(family), 80))
			wantReset(t, fmt.Sprintf("outbound, app gone: %v", dialerGoes), dialer, accepted, dialerGoes)
			dialer, accepted = deliveryPair(t, pod, member.Addr(family), netip.AddrPortFrom(pod.Addr(family), 80))
			wantReset(t, fmt.Sprintf("delivery, proxy gone: %v", dialerGoes), dialer, accepted, dialerGoes)
		}
	})
	if got := pod.count(t, VerdictStrayControl); got != 0 {
		t.Errorf("stray-control: got %d, want 0: a reset left the pod", got)
	}
}

// outboundPair is a captured connection: the app's end and the proxy's.
func outboundPair(t *testing.T, pod *enrolled, to netip.AddrPort) (dialer, accepted net.Conn) {
	t.Helper()
	slot := SlotOutbound4
	if to.Addr().Is6() {
		slot = SlotOutbound6
	}
	l := pod.proxy.listen(t, netip.AddrPortFrom(hidden[slot.IsIPv6()], 4))
	defer func() { _ = l.Close() }()
	if err := pod.bpf.SetListener(slot, fdOf(t, l)); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := pod.bpf.SetListener(slot, fdOf(t, pod.proxy.listeners[slot])); err != nil {
			t.Error(err)
		}
	}()
	dialer, err := pod.Dial(context.Background(), "tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	return dialer, mustAccept(t, l)
}

// deliveryPair is a delivered connection: the proxy's end, at the client's address, and the app's.
func deliveryPair(t *testing.T, pod *enrolled, client netip.Addr, app netip.AddrPort) (dialer, accepted net.Conn) {
	t.Helper()
	l := pod.Listen(t, "tcp", app.String())
	defer func() { _ = l.Close() }()
	dialer, err := pod.proxy.dialApp(client, app)
	if err != nil {
		t.Fatal(err)
	}
	return dialer, mustAccept(t, l)
}

func mustAccept(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// wantReset lets one end vanish and writes into the other.
func wantReset(t *testing.T, name string, dialer, accepted net.Conn, dialerGoes bool) {
	t.Helper()
	goes, stays := dialer, accepted
	if !dialerGoes {
		goes, stays = accepted, dialer
	}
	defer func() { _ = stays.Close() }()
	// One segment each way: a connection that never was used may instead end by drop-stray.
	for _, pair := range [][2]net.Conn{{dialer, accepted}, {accepted, dialer}} {
		if _, err := pair[0].Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(pair[1], make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	// A socket under repair is closed without a packet.
	if err := unix.SetsockoptInt(connFD(t, goes), unix.IPPROTO_TCP, unix.TCP_REPAIR, 1); err != nil {
		t.Fatal(err)
	}
	_ = goes.Close()
	if _, err := stays.Write([]byte("anybody?")); err != nil {
		t.Errorf("%s: write: %v", name, err)
	}
	_ = stays.SetReadDeadline(time.Now().Add(time.Second))
	if _, err := stays.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("%s: read: got %v, want %v", name, err, unix.ECONNRESET)
	}
}

func TestEmptySlotsRefuseAtOnce(t *testing.T) {
	w := newWorld(t)
	pod, peer := w.host.Pod(t, "pod"), w.host.Pod(t, "peer")
	attached := w.attach(t, pod)
	w.mesh(t, peer)
	eachFamily(t, func(t *testing.T, family string) {
		for _, tt := range []struct {
			from *testutil.NS
			to   netip.AddrPort
		}{
			{pod.NS, netip.AddrPortFrom(peer.Addr(family), 80)},
			{peer.NS, netip.AddrPortFrom(pod.Addr(family), 80)},
			{peer.NS, netip.AddrPortFrom(pod.Addr(family), HBONEPort)},
		} {
			start := time.Now()
			_, err := tt.from.AskFrom(tt.to)
			if took := time.Since(start); !errors.Is(err, unix.ECONNREFUSED) || took > 900*time.Millisecond {
				t.Errorf("%v: got %v after %v, want %v at once", tt.to, err, took, unix.ECONNREFUSED)
			}
		}
	})
	if got, err := attached.Verdicts(); err != nil || got[VerdictDropNoListener] != 6 {
		t.Errorf("drop-no-listener: got %d, %v, want 6", got[VerdictDropNoListener], err)
	}
}

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
				testutil.Eventually(t, time.Second, func() error { return inTimeWait(tt.waits.NS, tt.to, from) })
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

func TestReversePathFilterDoesNotMatter(t *testing.T) {
	for _, mode := range []string{"1", "2"} {
		t.Run(mode, func(t *testing.T) {
			w := newWorld(t)
			server, legacy := w.enrol(t, w.host.Pod(t, "server")), w.host.Pod(t, "legacy")
			for _, dev := range []string{"all", "default", "lo", "eth0"} {
				server.Sysctl(t, "net.ipv4.conf."+dev+".rp_filter", mode)
			}
			server.proxy.deliver.Store(true)
			app, out := netip.AddrPortFrom(server.Addr4, 80), netip.AddrPortFrom(legacy.Addr4, 80)
			server.Echo(t, "app", app.String())
			wantAnswer(t, legacy.NS, app, "app", legacy.Addr4)
			wantAnswer(t, server.NS, out, "outbound@"+out.String(), server.Addr4)
		})
	}
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
