// SPDX-License-Identifier: Apache-2.0

package strange

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// option sets a socket option of every socket it is the Control of.
func option(level, name, value int) func(string, string, syscall.RawConn) error {
	return control(func(fd int) error { return unix.SetsockoptInt(fd, level, name, value) })
}

func control(set func(fd int) error) func(string, string, syscall.RawConn) error {
	return func(_, _ string, raw syscall.RawConn) error {
		var err error
		if cerr := raw.Control(func(fd uintptr) { err = set(int(fd)) }); cerr != nil {
			return cerr
		}
		return err
	}
}

// dialWith connects with a dialer that make returns.
func dialWith(from *testutil.NS, make func() *net.Dialer) dialer {
	return func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
		return from.DialWith(ctx, make(), "tcp", to.String())
	}
}

// listenWith serves on a port with a configuration of the caller's.
func (s *strange) listenWith(t *testing.T, lc net.ListenConfig, port int) {
	t.Helper()
	var l net.Listener
	s.MustDo(t, func() (err error) {
		l, err = lc.Listen(context.Background(), "tcp", fmt.Sprintf("[::]:%d", port))
		return err
	})
	s.serve(t, l)
}

func TestTCPFastOpen(t *testing.T) {
	s := newStrange(t, "fastopen")
	// Client and server, data in the SYN without asking for a cookie first, on any listener.
	const everything = "1543" // 0x1 + 0x2 + 0x4 + 0x200 + 0x400
	s.Sysctl(t, "net.ipv4.tcp_fastopen", everything)
	legacy := inside(s.w.legacy)
	legacy.Sysctl(t, "net.ipv4.tcp_fastopen", everything)
	const port = 7001
	lc := net.ListenConfig{Control: option(unix.IPPROTO_TCP, unix.TCP_FASTOPEN, 64)}
	lc.SetMultipathTCP(false)
	s.listenWith(t, lc, port)
	early := func() *net.Dialer {
		return &net.Dialer{Control: option(unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1)}
	}
	before := s.fastOpens(t)
	for range 2 {
		s.outbound("data in the SYN", dialWith(s.NS, early))
		s.passthrough("data in the SYN", dialWith(s.NS, early))
		s.inbound("listener with fast open", port)
		for _, family := range []int{4, 6} {
			to := netip.AddrPortFrom(s.Addr(family), port)
			if err := carry(dialWith(legacy, early), to, "fastopen", s.w.legacy.Addr(family)); err != nil {
				t.Errorf("data in the SYN from outside the mesh to %v: %v", to, err)
			}
		}
	}
	if s.fastOpens(t) == before {
		t.Error("no SYN had data: the test tests nothing")
	}
}

// fastOpens is how many SYNs with data the namespace has sent, whatever came of it.
func (s *strange) fastOpens(t *testing.T) (n int) {
	t.Helper()
	s.MustDo(t, func() error {
		table, err := os.ReadFile("/proc/thread-self/net/netstat")
		if err != nil {
			return err
		}
		lines := strings.Split(string(table), "\n")
		keys, values := strings.Fields(lines[0]), strings.Fields(lines[1])
		for i, key := range keys {
			if key == "TCPFastOpenActive" || key == "TCPFastOpenActiveFail" {
				var v int
				fmt.Sscan(values[i], &v)
				n += v
			}
		}
		return nil
	})
	return n
}

func TestMultipathTCP(t *testing.T) {
	s := newStrange(t, "multipath")
	const port = 7001
	multipath := func() *net.Dialer {
		d := &net.Dialer{}
		d.SetMultipathTCP(true)
		return d
	}
	var lc net.ListenConfig
	lc.SetMultipathTCP(true)
	s.listenWith(t, lc, port)
	s.everyWay("plain sockets")
	s.outbound("MPTCP socket", dialWith(s.NS, multipath))
	s.passthrough("MPTCP socket", dialWith(s.NS, multipath))
	s.inbound("MPTCP listener", port)
	for _, family := range []int{4, 6} {
		to := netip.AddrPortFrom(s.Addr(family), port)
		if err := carry(dialWith(s.NS, multipath), to, "multipath", s.Addr(family)); err != nil {
			t.Errorf("MPTCP to itself at %v: %v", to, err)
		}
		if err := carry(dialWith(inside(s.w.legacy), multipath), to, "multipath", s.w.legacy.Addr(family)); err != nil {
			t.Errorf("MPTCP from outside the mesh to %v: %v", to, err)
		}
		s.viaMTLS("MPTCP", "peer", s.w.Nodes[0], to, func() error {
			return carry(dialWith(inside(s.w.peer), multipath), to, "multipath", s.w.peer.Addr(family))
		})
	}
}

func TestSocketBoundToItsDevice(t *testing.T) {
	s := newStrange(t, "device")
	bound := control(func(fd int) error { return unix.BindToDevice(fd, "eth0") })
	s.passthrough("client bound to eth0", dialWith(s.NS, func() *net.Dialer { return &net.Dialer{Control: bound} }))
	s.outbound("client bound to eth0", dialWith(s.NS, func() *net.Dialer { return &net.Dialer{Control: bound} }))
	const port = 7001
	lc := net.ListenConfig{Control: bound}
	lc.SetMultipathTCP(false)
	s.listenWith(t, lc, port)
	s.inbound("listener bound to eth0", port)
}

// mapped connects an IPv6 socket, to IPv4 by a mapped address.
func mapped(from *testutil.NS) dialer {
	return func(ctx context.Context, to netip.AddrPort) (conn net.Conn, err error) {
		err = from.Do(func() error {
			fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			f := os.NewFile(uintptr(fd), "tcp")
			defer func() { _ = f.Close() }()
			timeout := unix.NsecToTimeval(effect.Nanoseconds())
			if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout); err != nil {
				return err
			}
			if err := unix.Connect(fd, &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}); err != nil {
				return fmt.Errorf("connect %v: %w", to, err)
			}
			conn, err = net.FileConn(f)
			return err
		})
		return conn, err
	}
}

func TestIPv4OnIPv6Sockets(t *testing.T) {
	s := newStrange(t, "mapped") // its listener is for both, too
	s.outbound("IPv6 socket", mapped(s.NS))
	s.passthrough("IPv6 socket", mapped(s.NS))
	s.inbound("IPv6 listener", echoPort)
	for _, family := range []int{4, 6} {
		if err := carry(mapped(s.NS), at(s.Pod, family), "mapped", s.Addr(family)); err != nil {
			t.Errorf("to itself: %v", err)
		}
	}
}

// TestEveryPortIsTheApps: none is taken. Only who is outside the mesh cannot reach an app on 15008: that port speaks mTLS.
func TestEveryPortIsTheApps(t *testing.T) {
	s := newStrange(t, "ports")
	for _, port := range []uint16{15000, 15001, 15006, 15020, 15021, 15053, 15080} {
		s.echo(t, fmt.Sprintf("[::]:%d", port))
		s.inbound("app on a port of Istio's", port)
	}
	const hbone = 15008
	s.echo(t, fmt.Sprintf("[::]:%d", hbone))
	for _, family := range []int{4, 6} {
		to := netip.AddrPortFrom(s.Addr(family), hbone)
		s.viaMTLS("app on the port of HBONE", "peer", s.w.Nodes[0], to, func() error {
			return carry(plain(inside(s.w.peer)), to, "ports", s.w.peer.Addr(family))
		})
		if err := carry(plain(s.NS), to, "ports", s.Addr(family)); err != nil {
			t.Errorf("to itself at %v: %v", to, err)
		}
		if err := carry(plain(inside(s.w.legacy)), to, "ports", netip.Addr{}); err == nil {
			t.Errorf("somebody outside the mesh reached the app at %v past the HBONE listener", to)
		}
	}
	s.everyWay("beside all that")
}

// listenPlain listens as an app does that does not know SO_REUSEADDR.
func (s *strange) listenPlain(port int) (l net.Listener, err error) {
	err = s.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), "listener")
		defer func() { _ = f.Close() }()
		if err := unix.Bind(fd, &unix.SockaddrInet6{Port: port}); err != nil {
			return fmt.Errorf("bind: %w", err)
		}
		if err := unix.Listen(fd, 64); err != nil {
			return fmt.Errorf("listen: %w", err)
		}
		l, err = net.FileListener(f)
		return err
	})
	return l, err
}

// TestAppRestartsWithoutReuseAddr: ztunnel's connections own the app's port, some in TIME_WAIT. An app that starts again
// gets it all the same.
func TestAppRestartsWithoutReuseAddr(t *testing.T) {
	s := newStrange(t, "binds")
	const port = 7001
	for round := range 3 {
		l, err := s.listenPlain(port)
		if err != nil {
			t.Fatalf("start %d of the app: %v", round+1, err)
		}
		go serve(l, "binds")
		s.inbound("app without SO_REUSEADDR", port)
		// One more stays open across the restart.
		open, err := inside(s.w.legacy).Dial(t.Context(), "tcp", netip.AddrPortFrom(s.Addr4, port).String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = open.Close() })
		if _, err := testutil.Ask(open); err != nil {
			t.Fatal(err)
		}
		_ = l.Close()
	}
	s.everyWay("after the restarts")
}
