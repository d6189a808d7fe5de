// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

func TestOpenConnectionsSurviveEnrolment(t *testing.T) {
	w := newWorld(t)
	client, server := w.host.Pod(t, "client"), w.host.Pod(t, "server")
	w.mesh(t, client, server)
	open := map[string]net.Conn{}
	for _, family := range []string{"4", "6"} {
		addr := netip.AddrPortFrom(server.Addr(family), 80)
		server.Echo(t, "server", addr.String())
		conn, err := client.Dial(context.Background(), "tcp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		if got, err := testutil.Ask(conn); err != nil || got.Name != "server" {
			t.Fatalf("before: got %q, %v", got.Name, err)
		}
		open[family] = conn
	}
	running := func(c *PodConfig) { c.Grandfather = true }
	enrolledClient, enrolledServer := w.enrol(t, client, running), w.enrol(t, server, running)
	eachFamily(t, func(t *testing.T, family string) {
		if err := testutil.Ping(open[family]); err != nil {
			t.Errorf("open connection: %v", err)
		}
		addr := netip.AddrPortFrom(server.Addr(family), 80)
		wantAnswer(t, client.NS, addr, "outbound@"+addr.String(), client.Addr(family))
	})
	for _, pod := range []*enrolled{enrolledClient, enrolledServer} {
		pod.wantVerdict(t, VerdictGrandfathered, 2)
	}
	// Attaching again must not forget them, though it lists none.
	w.attach(t, client)
	for family, conn := range open {
		if err := testutil.Ping(conn); err != nil {
			t.Errorf("IPv%s, after attaching again: %v", family, err)
		}
	}
}

// TestOpenConnectionsAreCutWithoutGrandfather shows that the test above can fail.
func TestOpenConnectionsAreCutWithoutGrandfather(t *testing.T) {
	w := newWorld(t)
	client, server := w.host.Pod(t, "client"), w.host.Pod(t, "server")
	w.mesh(t, server)
	echo := server.Echo(t, "server", netip.AddrPortFrom(server.Addr4, 80).String())
	conn, err := client.Dial(context.Background(), "tcp", echo.Addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := testutil.Ask(conn); err != nil {
		t.Fatal(err)
	}
	pod := w.enrol(t, client)
	_ = conn.SetDeadline(time.Now().Add(400 * time.Millisecond))
	if _, err := io.WriteString(conn, "in clear"); err != nil {
		t.Error(err)
	}
	if n, err := conn.Read(make([]byte, 16)); err == nil {
		t.Errorf("got %d bytes back", n)
	}
	pod.wantVerdict(t, VerdictDropStray, 1)
}

func TestOpenConnectionsAreListedAsTheirPeerSends(t *testing.T) {
	testutil.RequireRoot(t)
	host := testutil.NewNode(t)
	pod, peer := host.Pod(t, "pod"), host.Pod(t, "peer")
	var want []captureFlow
	var conns []net.Conn
	add := func(conn net.Conn, err error) net.Conn {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
		return conn
	}
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	ctx := context.Background()
	for _, family := range []string{"4", "6"} {
		there := peer.Echo(t, "peer", netip.AddrPortFrom(peer.Addr(family), 80).String())
		here := pod.Echo(t, "pod", netip.AddrPortFrom(pod.Addr(family), 80).String())
		out := add(pod.Dial(ctx, "tcp", there.Addr.String()))
		in := add(peer.Dial(ctx, "tcp", here.Addr.String()))
		want = append(want, newFlow(there.Addr, addrPortOf(out.LocalAddr())), newFlow(addrPortOf(in.LocalAddr()), here.Addr))
		add(pod.Dial(ctx, "tcp", here.Addr.String())) // both ends here: not listed
		for _, c := range []net.Conn{out, in} {
			if _, err := testutil.Ask(c); err != nil {
				t.Fatal(err)
			}
		}
	}
	mapped := netip.AddrPortFrom(peer.Addr4, 80)
	want = append(want, newFlow(mapped, addrPortOf(dialV4Mapped(t, pod.NS, mapped).LocalAddr())))
	want = append(want, connecting(t, host, pod))

	var got []captureFlow
	pod.MustDo(t, func() (err error) {
		got, err = openConnections()
		return err
	})
	sorted := func(flows []captureFlow) (text []string) {
		for _, f := range flows {
			text = append(text, describe(f))
		}
		slices.Sort(text)
		return text
	}
	if g, w := sorted(got), sorted(want); !slices.Equal(g, w) {
		t.Errorf("\n got %v\nwant %v", g, w)
	}
}

// connecting leaves a socket in SYN_SENT, whose peer the node never reaches, and returns its flow as the peer would send.
func connecting(t *testing.T, host *testutil.Node, pod *testutil.Pod) captureFlow {
	t.Helper()
	to := netip.MustParseAddrPort("10.99.0.1:9")
	host.Run(t, "ip", "route", "add", "blackhole", to.Addr().String())
	var from netip.AddrPort
	pod.MustDo(t, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
		if !errors.Is(err, unix.EINPROGRESS) {
			return fmt.Errorf("connect: got %v, want %v", err, unix.EINPROGRESS)
		}
		sa, err := unix.Getsockname(fd)
		if err != nil {
			return err
		}
		in := sa.(*unix.SockaddrInet4)
		from = netip.AddrPortFrom(netip.AddrFrom4(in.Addr), uint16(in.Port))
		return nil
	})
	return newFlow(to, from)
}
