// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

func TestNetAdminInThePodCannotEscape(t *testing.T) {
	w := newWorld(t)
	client, server := w.enrol(t, w.host.Pod(t, "client")), w.host.Pod(t, "server")
	w.mesh(t, server)
	wire := sniff(t, w.host.NS, server.HostIf)
	eachFamily(t, func(t *testing.T, family string) {
		server.Echo(t, "server", netip.AddrPortFrom(server.Addr(family), 80).String())
	})
	for _, command := range []string{
		"true",
		"tc filter del dev eth0 egress",
		"tc qdisc add dev eth0 clsact",
		"tc filter del dev eth0 egress",
		"tc qdisc del dev eth0 clsact",
		"tc qdisc replace dev eth0 root pfifo",
		"tc qdisc del dev lo clsact",
		"nft flush ruleset",
		"ip link set dev eth0 xdp off",
	} {
		t.Run(command, func(t *testing.T) {
			args := strings.Fields(command)
			if out, err := client.Try(args[0], args[1:]...); err != nil {
				t.Logf("refused: %s", out)
			}
			if isClsact() {
				w.wantTamperingStopped(t, client, server)
			}
			eachFamily(t, func(t *testing.T, family string) {
				addr := netip.AddrPortFrom(server.Addr(family), 80)
				for range 10 {
					wantAnswer(t, client.NS, addr, "outbound@"+addr.String(), client.Addr(family))
				}
			})
		})
	}
	if isClsact() { // resets and the like may leave while there is no filter
		wire.wantNoPayload(t, client.Pod, server)
	} else {
		wire.wantNone(t, client.Pod, server)
	}
}

// wantTamperingStopped is what holds without links: a filter that is gone is told by Check, guard stops what the pod then
// sends, and attaching again repairs it. A pod that has lost nothing passes as well.
func (w *world) wantTamperingStopped(t *testing.T, client *enrolled, server *testutil.Pod) {
	t.Helper()
	err := w.check(client.bpf)
	if err == nil {
		return
	}
	if !strings.Contains(err.Error(), "detached: interface ") {
		t.Errorf("Check: got %v, want it to name the filter", err)
	}
	if strings.Contains(err.Error(), "link "+capturePrefix) {
		d := &net.Dialer{Timeout: 200 * time.Millisecond}
		leaks := client.count(t, VerdictDropLeak)
		conn, err := client.DialWith(context.Background(), d, "tcp", netip.AddrPortFrom(server.Addr4, 80).String())
		if err == nil {
			t.Error("without capture the server answered")
			_ = conn.Close()
		}
		if client.count(t, VerdictDropLeak) == leaks {
			t.Error("guard counted nothing")
		}
	}
	w.attach(t, client.Pod)
	if err := w.check(client.bpf); err != nil {
		t.Errorf("Check after attaching again: %v", err)
	}
}

// A pod that swaps names keeps capture on the device that leads out, also when somebody repairs what Check complains of.
func TestRenamedInterfaceStaysCaptured(t *testing.T) {
	w := newWorld(t)
	client, server := w.enrol(t, w.host.Pod(t, "client")), w.host.Pod(t, "server")
	w.mesh(t, server)
	wire := sniff(t, w.host.NS, server.HostIf)
	stillCaptured := func() {
		t.Helper()
		eachFamily(t, func(t *testing.T, family string) {
			addr := netip.AddrPortFrom(server.Addr(family), 80)
			wantAnswer(t, client.NS, addr, "outbound@"+addr.String(), client.Addr(family))
		})
	}
	eachFamily(t, func(t *testing.T, family string) {
		server.Echo(t, "server", netip.AddrPortFrom(server.Addr(family), 80).String())
	})
	client.Run(t, "ip", "link", "set", "eth0", "name", "real")
	stillCaptured()
	client.Run(t, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "decoy")
	pod, err := w.Node.Pod(client.Name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = pod.Close() }()
	if err := w.check(pod); err == nil || !strings.Contains(err.Error(), "is another device now") {
		t.Errorf("Check: got %v, want it to name the decoy", err)
	}
	for range 2 {
		again := w.attach(t, client.Pod)
		if err := w.check(again); err != nil {
			t.Errorf("Check after attaching again: %v", err)
		}
		stillCaptured()
	}
	wire.wantNone(t, client.Pod, server)
}

func TestMarksOfTheAppDoNotMatter(t *testing.T) {
	w := newWorld(t)
	client, server := w.enrol(t, w.host.Pod(t, "client")), w.host.Pod(t, "server")
	w.mesh(t, server)
	wire := sniff(t, w.host.NS, server.HostIf)
	for _, mark := range []int{1, 0x1000, 0x2000, int(SteeringMark), 0x539, 0xffffffff} {
		t.Run(fmt.Sprintf("%#x", mark), func(t *testing.T) {
			eachFamily(t, func(t *testing.T, family string) {
				addr := netip.AddrPortFrom(server.Addr(family), 80)
				for _, bind := range []bool{false, true} {
					d := &net.Dialer{Timeout: 2 * time.Second, Control: withMark(mark)}
					if bind {
						d.LocalAddr = &net.TCPAddr{IP: client.Addr(family).AsSlice()}
					}
					conn, err := client.DialWith(context.Background(), d, "tcp", addr.String())
					if errors.Is(err, unix.ENETUNREACH) && uint32(mark)&SteeringMask == SteeringMark && !bind && family == "4" {
						continue // our mark, and the kernel finds no source address: who forges it only cuts itself off
					}
					if err != nil {
						t.Errorf("bind %v: %v", bind, err)
						continue
					}
					got, err := testutil.Ask(conn)
					if want := "outbound@" + addr.String(); err != nil || got.Name != want {
						t.Errorf("bind %v: got %q, %v, want %q", bind, got.Name, err, want)
					}
					if bind && got.From.Addr() != client.Addr(family) {
						t.Errorf("source: got %v, want %v", got.From.Addr(), client.Addr(family))
					}
					_ = conn.Close()
				}
			})
		})
	}
	wire.wantNone(t, client.Pod, server)
}

func withMark(mark int) func(string, string, syscall.RawConn) error {
	return func(_, _ string, raw syscall.RawConn) (err error) {
		if e := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark)
		}); e != nil {
			return e
		}
		return err
	}
}

// TestDestroyedSteeringFailsClosed: who takes away what leads bounced packets to the proxy only cuts itself off. Check
// names the damage, attaching again repairs it.
func TestDestroyedSteeringFailsClosed(t *testing.T) {
	w := newWorld(t)
	client, server := w.enrol(t, w.host.Pod(t, "client")), w.host.Pod(t, "server")
	w.mesh(t, server)
	addr4, addr6 := netip.AddrPortFrom(server.Addr4, 80), netip.AddrPortFrom(server.Addr6, 80)
	server.Echo(t, "server", addr4.String())
	server.Echo(t, "server", addr6.String())
	wire := sniff(t, w.host.NS, server.HostIf)
	for _, tt := range []struct {
		command string
		to      netip.AddrPort
		damage  string
	}{
		{"ip rule del priority 500", addr4, "no IPv4 rule 500: fwmark 0x3000/0x3000 lookup 15008"},
		{"ip -6 rule del priority 500", addr6, "no IPv6 rule 500: fwmark 0x3000/0x3000 lookup 15008"},
		{"ip route flush table 15008", addr4, "no IPv4 route: local default dev lo table 15008"},
		{"ip -6 route flush table 15008", addr6, "no IPv6 route: local default dev lo table 15008"},
		{"sysctl -q net.ipv4.conf.lo.accept_local=0", addr4, "net.ipv4.conf.lo.accept_local is 0, want 1"},
		{"ip link set lo down", addr4, "lo is down"},
	} {
		t.Run(tt.command, func(t *testing.T) {
			args := strings.Fields(tt.command)
			client.Run(t, args[0], args[1:]...)
			d := &net.Dialer{Timeout: 300 * time.Millisecond}
			if conn, err := client.DialWith(context.Background(), d, "tcp", tt.to.String()); err == nil {
				t.Error("a connection was opened")
				_ = conn.Close()
			}
			if err := w.check(client.bpf); err == nil || !strings.Contains(err.Error(), tt.damage) {
				t.Errorf("Check: got %v, want %q", err, tt.damage)
			}
			w.attach(t, client.Pod)
			if err := w.check(client.bpf); err != nil {
				t.Errorf("Check after attaching again: %v", err)
			}
			wantAnswer(t, client.NS, tt.to, "outbound@"+tt.to.String(), client.Addr(familyOf(tt.to)))
		})
	}
	wire.wantNone(t, client.Pod, server)
}

func familyOf(a netip.AddrPort) string {
	if a.Addr().Is4() {
		return "4"
	}
	return "6"
}

// TestUsedSocketsAreDecidedAnew: a socket that was let through to a stranger is no way out afterwards.
func TestUsedSocketsAreDecidedAnew(t *testing.T) {
	w := newWorld(t)
	pod := w.enrol(t, w.host.Pod(t, "pod"))
	pod.proxy.deliver.Store(true)
	outside, server := w.host.Pod(t, "outside"), w.host.Pod(t, "server")
	w.mesh(t, server)
	echo := outside.Echo(t, "outside", netip.AddrPortFrom(outside.Addr4, 80).String())

	t.Run("connecting", func(t *testing.T) {
		fd := usedSocket(t, pod.NS, echo.Addr)
		pod.MustDo(t, func() error {
			return unix.Connect(fd, &unix.SockaddrInet4{Port: 80, Addr: server.Addr4.As4()})
		})
		want := fmt.Sprintf("outbound@%v:80", server.Addr4)
		if got, err := testutil.Ask(connOf(t, fd)); err != nil || got.Name != want {
			t.Errorf("got %q, %v, want %q", got.Name, err, want)
		}
	})
	t.Run("listening", func(t *testing.T) {
		// The app's answers to a delivery must not take the listener's inherited tag: they would leave in clear.
		fd := usedSocket(t, pod.NS, echo.Addr)
		pod.MustDo(t, func() error {
			if err := unix.Bind(fd, &unix.SockaddrInet4{Port: 81, Addr: pod.Addr4.As4()}); err != nil {
				return err
			}
			return unix.Listen(fd, 5)
		})
		go acceptOnce(fd, "app")
		wantAnswer(t, outside.NS, netip.AddrPortFrom(pod.Addr4, 81), "app", outside.Addr4)
	})
}

// usedSocket returns an unconnected socket that was connected to addr before.
func usedSocket(t *testing.T, ns *testutil.NS, addr netip.AddrPort) (fd int) {
	t.Helper()
	ns.MustDo(t, func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}); err != nil {
			return err
		}
		unspec := unix.RawSockaddr{Family: unix.AF_UNSPEC}
		_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&unspec)), unsafe.Sizeof(unspec))
		if errno != 0 {
			return fmt.Errorf("disconnect: %w", errno)
		}
		return nil
	})
	return fd
}

// acceptOnce serves one connection as an Echo does, and takes ownership of fd.
func acceptOnce(fd int, name string) {
	file := os.NewFile(uintptr(fd), name)
	l, err := net.FileListener(file)
	_ = file.Close()
	if err != nil {
		return
	}
	defer func() { _ = l.Close() }()
	c, err := l.Accept()
	if err != nil {
		return
	}
	defer func() { _ = c.Close() }()
	_, _ = fmt.Fprintf(c, "%s %s\n", name, c.RemoteAddr())
	echoAll(c.(*net.TCPConn))
}
