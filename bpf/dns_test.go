// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// resolver stands for ztunnel's in one pod: it answers each query with "dns@ORIGINAL-DESTINATION", from there.
type resolver struct {
	*proxy
	t *testing.T
}

func newResolver(t *testing.T, e *enrolled) *resolver {
	r := &resolver{proxy: e.proxy, t: t}
	for _, s := range DNSSlots() {
		addr := netip.AddrPortFrom(hidden[s.IsIPv6()], 5+uint16(s))
		if !s.IsUDP() {
			l := r.listen(t, addr)
			t.Cleanup(func() { _ = l.Close() })
			go r.serveTCP(l)
			if err := e.bpf.SetListener(s, fdOf(t, l)); err != nil {
				t.Fatal(err)
			}
			continue
		}
		c := r.socket(addr, true)
		t.Cleanup(func() { _ = c.Close() })
		go r.serveUDP(c)
		if err := e.bpf.SetListener(s, udpFD(t, c)); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// socket is a UDP socket of the resolver's at an address that need not be the pod's.
func (r *resolver) socket(addr netip.AddrPort, wantDestination bool) *net.UDPConn {
	lc := net.ListenConfig{Control: func(network, _ string, raw syscall.RawConn) error {
		err := r.prepare(strings.Replace(network, "udp", "tcp", 1), "", raw)
		return errors.Join(err, raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
			if wantDestination && addr.Addr().Is4() {
				_ = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_RECVORIGDSTADDR, 1)
			} else if wantDestination {
				_ = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_RECVORIGDSTADDR, 1)
			}
		}))
	}}
	var c net.PacketConn
	err := r.pod.Do(func() (err error) {
		c, err = lc.ListenPacket(context.Background(), "udp", addr.String())
		return err
	})
	if err != nil {
		r.t.Error(err)
		return nil
	}
	return c.(*net.UDPConn)
}

func (r *resolver) serveUDP(c *net.UDPConn) {
	query, control := make([]byte, 512), make([]byte, 512)
	for {
		n, cn, _, client, err := c.ReadMsgUDPAddrPort(query, control)
		if err != nil {
			return
		}
		dst, err := originalDestination(control[:cn])
		if err != nil {
			r.t.Error(err)
			return
		}
		answer := fmt.Sprintf("dns@%v %s", dst, query[:n])
		if from := r.socket(dst, false); from != nil {
			_, _ = from.WriteToUDPAddrPort([]byte(answer), client)
			_ = from.Close()
		}
	}
}

func (r *resolver) serveTCP(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = fmt.Fprintf(c, "dns@%v\n", unmap(c.LocalAddr()))
		_ = c.Close()
	}
}

// originalDestination reads IP_ORIGDSTADDR or IPV6_ORIGDSTADDR; ip(7).
func originalDestination(control []byte) (netip.AddrPort, error) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return netip.AddrPort{}, err
	}
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_ORIGDSTADDR:
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte(m.Data[4:8])), binary.BigEndian.Uint16(m.Data[2:])), nil
		case m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_ORIGDSTADDR:
			return netip.AddrPortFrom(netip.AddrFrom16([16]byte(m.Data[8:24])), binary.BigEndian.Uint16(m.Data[2:])), nil
		}
	}
	return netip.AddrPort{}, errors.New("no original destination")
}

func udpFD(t *testing.T, c *net.UDPConn) (fd int) {
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(p uintptr) { fd = int(p) }); err != nil {
		t.Fatal(err)
	}
	return fd
}

// query asks over UDP from inside the pod and returns answer and sender.
func query(from *testutil.NS, dst netip.AddrPort, connected bool) (answer string, sender netip.AddrPort, err error) {
	var c net.PacketConn
	err = from.Do(func() error {
		if connected {
			conn, err := net.Dial("udp", dst.String())
			if err == nil {
				c = conn.(*net.UDPConn)
			}
			return err
		}
		c, err = net.ListenPacket("udp", ":0")
		return err
	})
	if err != nil {
		return "", sender, err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(3 * time.Second))
	u := c.(*net.UDPConn)
	if connected {
		_, err = u.Write([]byte("who?"))
	} else {
		_, err = u.WriteToUDPAddrPort([]byte("who?"), dst)
	}
	if err != nil {
		return "", sender, err
	}
	buf := make([]byte, 512)
	n, sender, err := u.ReadFromUDPAddrPort(buf)
	return string(buf[:n]), netip.AddrPortFrom(sender.Addr().Unmap(), sender.Port()), err
}

func TestQueriesGoToTheResolver(t *testing.T) {
	w := newWorld(t)
	client, server := w.host.Pod(t, "client"), w.host.Pod(t, "server")
	w.mesh(t, client)
	e := w.enrol(t, client, func(c *PodConfig) { c.CaptureDNS = true })
	err := w.check(e.bpf)
	for _, s := range DNSSlots() {
		if want := fmt.Sprintf("slot %v is empty", s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Check without a resolver: got %v, want %q", err, want)
		}
	}
	r := newResolver(t, e)
	if err := w.check(e.bpf); err != nil {
		t.Errorf("Check: %v", err)
	}
	eachFamily(t, func(t *testing.T, family string) {
		dst := netip.AddrPortFrom(server.Addr(family), 53)
		for _, connected := range []bool{true, false} {
			answer, sender, err := query(client.NS, dst, connected)
			if want := fmt.Sprintf("dns@%v who?", dst); err != nil || answer != want || sender != dst {
				t.Errorf("UDP, connected %t: got %q from %v, %v, want %q from %v", connected, answer, sender, err, want, dst)
			}
		}
		e.wantVerdict(t, VerdictDNSCaptured, 2)
		e.wantVerdict(t, VerdictDNS, 2)
		c, err := client.Dial(t.Context(), "tcp", dst.String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(3 * time.Second))
		buf := make([]byte, 512)
		n, err := c.Read(buf)
		if want := fmt.Sprintf("dns@%v\n", dst); err != nil || string(buf[:n]) != want {
			t.Errorf("TCP: got %q, %v, want %q", buf[:n], err, want)
		}
		r.asksItself(t, server, dst)
	})
}

// asksItself checks that the resolver's own queries leave the pod, and that port 54 is nobody's business.
func (r *resolver) asksItself(t *testing.T, server *testutil.Pod, dst netip.AddrPort) {
	t.Helper()
	for _, each := range []struct {
		name string
		to   netip.AddrPort
		dial func(netip.AddrPort) (net.Conn, error)
	}{
		{"the resolver", dst, func(to netip.AddrPort) (net.Conn, error) {
			return r.pod.DialWith(t.Context(), &net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
				return raw.Control(func(fd uintptr) { _ = r.node.TagSocket(int(fd), TagProxy) })
			}}, "udp", to.String())
		}},
		{"an app, port 54", netip.AddrPortFrom(dst.Addr(), 54), func(to netip.AddrPort) (net.Conn, error) {
			return r.pod.Dial(t.Context(), "udp", to.String())
		}},
	} {
		var ln net.PacketConn
		server.MustDo(t, func() (err error) {
			ln, err = net.ListenPacket("udp", each.to.String())
			return err
		})
		c, err := each.dial(each.to)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte(each.name)); err != nil {
			t.Error(err)
		}
		_ = ln.SetDeadline(time.Now().Add(3 * time.Second))
		buf := make([]byte, 512)
		if n, _, err := ln.ReadFrom(buf); err != nil || string(buf[:n]) != each.name {
			t.Errorf("%s: server got %q, %v", each.name, buf[:n], err)
		}
		_, _ = c.Close(), ln.Close()
	}
}

// TestResolversInThePodAreLeftAlone: at a loopback address, as systemd-resolved is, and at the pod's own.
func TestResolversInThePodAreLeftAlone(t *testing.T) {
	w := newWorld(t)
	client := w.host.Pod(t, "client")
	w.mesh(t, client)
	e := w.enrol(t, client, func(c *PodConfig) { c.CaptureDNS = true })
	newResolver(t, e)
	for _, addr := range []netip.Addr{netip.MustParseAddr("127.0.0.53"), netip.IPv6Loopback(), client.Addr4, client.Addr6} {
		own := netip.AddrPortFrom(addr, 53)
		serveDNS(t, client.NS, own)
		client.Echo(t, "own", own.String())
		for _, connected := range []bool{true, false} {
			if answer, sender, err := query(client.NS, own, connected); err != nil || answer != "who?" || sender != own {
				t.Errorf("%v: UDP, connected %t: got %q from %v, %v", own, connected, answer, sender, err)
			}
		}
		wantAnswer(t, client.NS, own, "own", netip.Addr{})
	}
	if got := e.count(t, VerdictDNSCaptured) + e.count(t, VerdictDNS); got != 0 {
		t.Errorf("captured %d queries, want none", got)
	}
}

// TestQueriesWithoutResolverAreRefused: no slot, no answer, and nothing leaves the pod.
func TestQueriesWithoutResolverAreRefused(t *testing.T) {
	w := newWorld(t)
	client, server := w.host.Pod(t, "client"), w.host.Pod(t, "server")
	w.mesh(t, client)
	e := w.enrol(t, client, func(c *PodConfig) { c.CaptureDNS = true })
	eachFamily(t, func(t *testing.T, family string) {
		dst := netip.AddrPortFrom(server.Addr(family), 53)
		server.MustDo(t, func() error {
			ln, err := net.ListenPacket("udp", dst.String())
			if err == nil {
				t.Cleanup(func() { _ = ln.Close() })
				go func() {
					buf := make([]byte, 512)
					if _, _, err := ln.ReadFrom(buf); err == nil {
						t.Error("a query reached the server")
					}
				}()
			}
			return err
		})
		if c, err := client.Dial(t.Context(), "tcp", dst.String()); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("TCP: got %v, %v, want connection refused", c, err)
		}
		c, err := client.Dial(t.Context(), "udp", dst.String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		if _, err := c.Write([]byte("who?")); err != nil {
			t.Error(err)
		}
		e.wantVerdict(t, VerdictDropNoListener, 2)
	})
}
