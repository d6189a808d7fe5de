// SPDX-License-Identifier: Apache-2.0

package inpod

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// tcpOption is a socket option of conn.
func tcpOption(t *testing.T, conn *net.TCPConn, level, option int) int {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var got int
	var failed error
	err = raw.Control(func(fd uintptr) { got, failed = unix.GetsockoptInt(int(fd), level, option) })
	if err := errors.Join(err, failed); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestDialedSocketsFollowTheOptions(t *testing.T) {
	testutil.RequireRoot(t)
	node := testutil.NewNode(t)
	a, b := node.Pod(t, "a"), node.Pod(t, "b")
	server, client := newTestPod(t, b.Path), newTestPod(t, a.Path)
	l, err := ListenInPod(t.Context(), server, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	to := netip.AddrPortFrom(b.Addr4, PortHBONE)
	for _, tc := range []struct {
		name                    string
		options                 Options
		alive, idle, unanswered int
	}{
		{"none", Options{}, 0, 0, 0},
		{"keepalive", Options{TCP: TCP{KeepAlive: net.KeepAliveConfig{Enable: true, Idle: 7 * time.Second, Interval: time.Second, Count: 2}}}, 1, 7, 0},
		{"user timeout", Options{TCP: TCP{UserTimeout: 9 * time.Second}}, 0, 0, 9000},
	} {
		client.sockets.Configure(tc.options)
		conn, err := client.Dial(t.Context(), netip.Addr{}, to)
		if err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		if got := tcpOption(t, conn, unix.SOL_SOCKET, unix.SO_KEEPALIVE); got != tc.alive {
			t.Errorf("%s: keepalive: got %d, want %d", tc.name, got, tc.alive)
		}
		if got := tcpOption(t, conn, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE); tc.idle != 0 && got != tc.idle {
			t.Errorf("%s: idle: got %d, want %d", tc.name, got, tc.idle)
		}
		if got := tcpOption(t, conn, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT); got != tc.unanswered {
			t.Errorf("%s: user timeout: got %d, want %d", tc.name, got, tc.unanswered)
		}
		_ = conn.Close()
	}
}

func TestDeliveryFromThePodsOwnAddress(t *testing.T) {
	testutil.RequireRoot(t)
	pod := newTestPod(t, testutil.NewNode(t).Pod(t, "a").Path)
	l, err := ListenInPod(t.Context(), pod, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	pod.sockets.Configure(Options{OwnSource: true})
	// Without the option a delivery from a foreign address does not come back here: no rules of an agent.
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), PortHBONE)
	conn, err := pod.Deliver(t.Context(), netip.MustParseAddr("192.0.2.1"), to, func(netip.AddrPort) bool { return false })
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap(); got != to.Addr() {
		t.Errorf("source: got %s, want %s", got, to.Addr())
	}
}

func TestListenersFollowTheOptions(t *testing.T) {
	testutil.RequireRoot(t)
	pod := newTestPod(t, testutil.NetNS(t, "a").Path)
	pod.sockets.Configure(Options{ExclusivePorts: true, IPv4Only: true})
	first, err := ListenInPod(t.Context(), pod, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if at := first.HBONE[0].Addr().(*net.TCPAddr).IP.String(); at != "0.0.0.0" {
		t.Errorf("listens on %s, want 0.0.0.0", at)
	}
	if second, err := ListenInPod(t.Context(), pod, nil); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("a second ztunnel: got %v, %v, want that the address is in use", second, err)
	}
}

func TestMarkIsTheOneAskedFor(t *testing.T) {
	testutil.RequireRoot(t)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := MarkWith(0x42)(fd); err != nil {
		t.Fatal(err)
	}
	if got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK); err != nil || got != 0x42 {
		t.Errorf("mark: got %#x, %v, want 0x42", got, err)
	}
}
