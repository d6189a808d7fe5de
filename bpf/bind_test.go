// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// bindPlain binds a socket without SO_REUSEADDR, as an app does that does not know the option, and says whether the
// socket has it then.
func bindPlain(t *testing.T, ns *testutil.NS, kind int, addr netip.AddrPort) (reuse bool, err error) {
	t.Helper()
	var sa unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte{}, Port: int(addr.Port())}
	family := unix.AF_INET
	if addr.Addr().Is6() {
		sa, family = &unix.SockaddrInet6{Port: int(addr.Port())}, unix.AF_INET6
	}
	err = ns.Do(func() error {
		fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		if err := unix.Bind(fd, sa); err != nil {
			return err
		}
		value, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR)
		reuse = value != 0
		if err == nil && kind == unix.SOCK_STREAM {
			err = unix.Listen(fd, 1)
		}
		return err
	})
	return reuse, err
}

func TestAppsShareTheirPortWithTheProxysConnections(t *testing.T) {
	w := newWorld(t)
	pod, legacy := w.enrol(t, w.host.Pod(t, "pod")), w.host.Pod(t, "legacy")
	eachFamily(t, func(t *testing.T, family string) {
		open, inTimeWait := netip.AddrPortFrom(pod.Addr(family), 3000), netip.AddrPortFrom(pod.Addr(family), 3001)
		conn, err := legacy.Dial(context.Background(), "tcp", open.String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		if _, err := testutil.Ask(conn); err != nil {
			t.Fatal(err)
		}
		proxyHangsUp(t, legacy.NS, inTimeWait)
		for _, addr := range []netip.AddrPort{open, inTimeWait} {
			if _, err := bindPlain(t, pod.NS, unix.SOCK_STREAM, addr); !errors.Is(err, unix.EADDRINUSE) {
				t.Errorf("bind %v without the program: got %v, want %v", addr, err, unix.EADDRINUSE)
			}
		}
		wantHook(t, w.attachHost(t, HostConfig{Bind: true}).Bind)
		for _, addr := range []netip.AddrPort{open, inTimeWait} {
			if _, err := bindPlain(t, pod.NS, unix.SOCK_STREAM, addr); err != nil {
				t.Errorf("bind %v: %v", addr, err)
			}
		}
		if err := testutil.Ping(conn); err != nil {
			t.Errorf("open connection: %v", err)
		}

		// Two listeners still conflict.
		pod.Echo(t, "app", netip.AddrPortFrom(netip.IPv6Unspecified(), 3002).String())
		if _, err := bindPlain(t, pod.NS, unix.SOCK_STREAM, netip.AddrPortFrom(open.Addr(), 3002)); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("second listener: got %v, want %v", err, unix.EADDRINUSE)
		}
		// Whom the program is not for.
		for name, c := range map[string]struct {
			ns   *testutil.NS
			kind int
			want bool
		}{
			"the pod":                 {pod.NS, unix.SOCK_STREAM, true},
			"the pod's UDP":           {pod.NS, unix.SOCK_DGRAM, false},
			"a pod that is not ours":  {legacy.NS, unix.SOCK_STREAM, false},
			"the host":                {w.host.NS, unix.SOCK_STREAM, false},
			"the host's UDP, as well": {w.host.NS, unix.SOCK_DGRAM, false},
		} {
			if got, err := bindPlain(t, c.ns, c.kind, netip.AddrPortFrom(open.Addr(), 0)); err != nil || got != c.want {
				t.Errorf("%s: SO_REUSEADDR is %v, %v, want %v", name, got, err, c.want)
			}
		}
		if err := w.DetachHost(); err != nil {
			t.Fatal(err)
		}
		if got, err := bindPlain(t, pod.NS, unix.SOCK_STREAM, netip.AddrPortFrom(open.Addr(), 0)); err != nil || got {
			t.Errorf("detached: SO_REUSEADDR is %v, %v", got, err)
		}
	})
}

// proxyHangsUp leaves a TIME_WAIT of the proxy's at addr.
func proxyHangsUp(t *testing.T, from *testutil.NS, addr netip.AddrPort) {
	t.Helper()
	conn, err := from.Dial(context.Background(), "tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := testutil.Ask(conn); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte(hangUp)); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(make([]byte, 1)); n > 0 || err == nil {
		t.Fatalf("the proxy did not hang up: %d, %v", n, err)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
}
