// SPDX-License-Identifier: Apache-2.0

package inpod

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/netns"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

func newTestPod(t *testing.T, path string) *Pod {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	p, err := NewPod(Info{UID: "u1", Name: "pod", Namespace: "default"}, fd, NewSockets(t.Context(), func(int) error { return nil }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.close)
	return p
}

func TestDialIsFromInsideThePod(t *testing.T) {
	testutil.RequireRoot(t)
	node := testutil.NewNode(t)
	a, b := node.Pod(t, "a"), node.Pod(t, "b")
	pod := newTestPod(t, a.Path)
	for _, family := range []string{"4", "6"} {
		echo := b.Echo(t, "b", netip.AddrPortFrom(b.Addr(family), 0).String())
		conn, err := pod.Dial(t.Context(), netip.Addr{}, echo.Addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if answer, err := testutil.Ask(conn); err != nil || answer.From.Addr() != a.Addr(family) {
			t.Errorf("got %+v, %v, want b seeing %s", answer, err, a.Addr(family))
		}
		raw, err := conn.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		_ = raw.Control(func(fd uintptr) {
			for option, want := range map[int]int{unix.TCP_KEEPIDLE: 180, unix.TCP_KEEPINTVL: 180, unix.TCP_KEEPCNT: 9, unix.TCP_NODELAY: 1} {
				if got, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, option); err != nil || got != want {
					t.Errorf("TCP option %d: got %d, %v, want %d", option, got, err, want)
				}
			}
		})
	}
}

func TestDialReportsWhyItFailed(t *testing.T) {
	testutil.RequireRoot(t)
	node := testutil.NewNode(t)
	a, b := node.Pod(t, "a"), node.Pod(t, "b")
	pod := newTestPod(t, a.Path)
	if _, err := pod.Dial(t.Context(), netip.Addr{}, netip.AddrPortFrom(b.Addr4, 9)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("nobody listens: got %v, want connection refused", err)
	}
	_, err := pod.Deliver(t.Context(), b.Addr6, netip.AddrPortFrom(b.Addr4, 9), nil)
	if err == nil || !strings.Contains(err.Error(), "different address families") {
		t.Errorf("other family: got %v", err)
	}
	node.Run(t, "nft", "add table inet t; add chain inet t f { type filter hook forward priority 0; policy drop; }")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := pod.Dial(ctx, netip.Addr{}, netip.AddrPortFrom(b.Addr4, 9)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no answer: got %v, want the deadline", err)
	}
}

func TestSocketThreadsDoNotKeepAPodsNamespace(t *testing.T) {
	testutil.RequireRoot(t)
	ns := testutil.NetNS(t, "a")
	pod := newTestPod(t, ns.Path)
	for range 20 {
		fd, err := pod.sockets.open(t.Context(), pod.ns, unix.AF_INET, unix.SOCK_STREAM)
		if err != nil {
			t.Fatal(err)
		}
		_ = unix.Close(fd)
	}
	home, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	want, err := home.ID()
	if err != nil {
		t.Fatal(err)
	}
	for _, got := range threadNamespaces(t) {
		if got != want {
			t.Errorf("a thread is in netns %v, want all in %v", got, want)
		}
	}
}

func TestListenersInPodShareTheirPorts(t *testing.T) {
	testutil.RequireRoot(t)
	pod := newTestPod(t, testutil.NetNS(t, "a").Path)
	first, err := ListenInPod(t.Context(), pod, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	second, err := ListenInPod(t.Context(), pod, nil)
	if err != nil {
		t.Fatalf("a second ztunnel cannot listen: %v", err)
	}
	second.Close()
	if held, err := ListenInPod(t.Context(), pod, first); held != first || err != nil {
		t.Errorf("got %p, %v, want what is held", held, err)
	}
}

func TestListenersWithoutIPv6(t *testing.T) {
	testutil.RequireRoot(t)
	ns := testutil.NetNS(t, "a")
	ns.Sysctl(t, "net.ipv6.conf.all.disable_ipv6", "1")
	l, err := ListenInPod(t.Context(), newTestPod(t, ns.Path), nil)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}

func TestPrivilegesAreThere(t *testing.T) {
	testutil.RequireRoot(t)
	if err := CheckPrivileges(); err != nil {
		t.Error(err)
	}
}
