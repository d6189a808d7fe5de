// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// rawSocket sends frames of its own making on a pod's eth0, with or without passing the tc hooks.
type rawSocket struct {
	fd, ifindex  int
	local, other net.HardwareAddr // MACs of the pod's and the host's end
}

func newRawSocket(t *testing.T, host *testutil.Node, pod *testutil.Pod, bypass bool) *rawSocket {
	t.Helper()
	r := &rawSocket{ifindex: pod.Ifindex(t, "eth0"), local: macOf(t, pod.NS, "eth0"), other: macOf(t, host.NS, pod.HostIf)}
	pod.MustDo(t, func() (err error) {
		if r.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil || !bypass {
			return err
		}
		return unix.SetsockoptInt(r.fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1)
	})
	t.Cleanup(func() { _ = unix.Close(r.fd) })
	return r
}

func macOf(t *testing.T, ns *testutil.NS, dev string) (mac net.HardwareAddr) {
	t.Helper()
	ns.MustDo(t, func() error {
		l, err := netlink.LinkByName(dev)
		if err == nil {
			mac = l.Attrs().HardwareAddr
		}
		return err
	})
	return mac
}

// send puts tags, VLAN headers, between the addresses and what f says.
func (r *rawSocket) send(t *testing.T, f frame, tags ...uint16) {
	t.Helper()
	data := f.bytes()
	copy(data, r.other)
	copy(data[macBytes:], r.local)
	var header []byte
	for _, protocol := range tags {
		header = append(binary.BigEndian.AppendUint16(header, protocol), 0, 0) // VLAN 0: a priority, no VLAN
	}
	data = slices.Insert(data, 2*macBytes, header...)
	proto := uint16(etherTypeIPv4)
	if f.dst.Addr().Is6() {
		proto = etherTypeIPv6
	}
	to := &unix.SockaddrLinklayer{Protocol: htons(proto), Ifindex: r.ifindex}
	// ENOBUFS is what a sender is told whose packet capture drops.
	if err := unix.Sendto(r.fd, data, 0, to); err != nil && !errors.Is(err, unix.ENOBUFS) {
		t.Fatal(err)
	}
}

func TestHandMadePacketsAreCaptured(t *testing.T) {
	w := newWorld(t)
	client, server := w.enrol(t, w.host.Pod(t, "client")), w.host.Pod(t, "server")
	w.mesh(t, server)
	wire := sniff(t, w.host.NS, client.HostIf)
	raw := newRawSocket(t, w.host, client.Pod, false)
	eachFamily(t, func(t *testing.T, family string) {
		f := frame{
			src: netip.AddrPortFrom(client.Addr(family), 5555), dst: netip.AddrPortFrom(server.Addr(family), 80),
			flags: flagSYN,
		}
		before := client.count(t, VerdictCaptured)
		raw.send(t, f)
		client.wantVerdict(t, VerdictCaptured, before+1)
		before = client.count(t, VerdictDropMalformed)
		f.cut = 20 + 1 // into the IP header
		raw.send(t, f)
		client.wantVerdict(t, VerdictDropMalformed, before+1)
	})
	wire.wantNone(t, client.Pod, server)
}

func TestGuardStopsWhatBypassesCapture(t *testing.T) {
	w := newWorld(t)
	unguarded := w.enrol(t, w.host.Pod(t, "unguarded"), func(c *PodConfig) { c.HostIfindexes = nil })
	guarded, server := w.enrol(t, w.host.Pod(t, "guarded")), w.host.Pod(t, "server")
	w.mesh(t, server)
	wire := sniff(t, w.host.NS, server.HostIf)
	eachFamily(t, func(t *testing.T, family string) {
		for _, pod := range []*enrolled{guarded, unguarded} {
			raw := newRawSocket(t, w.host, pod.Pod, true)
			for _, port := range []uint16{80, HBONEPort} {
				raw.send(t, frame{
					src: netip.AddrPortFrom(pod.Addr(family), 5555), dst: netip.AddrPortFrom(server.Addr(family), port),
					flags: flagSYN,
				})
			}
		}
		wantSYN := func(pod *enrolled, port uint16, want bool) error {
			src, dst := netip.AddrPortFrom(pod.Addr(family), 5555), netip.AddrPortFrom(server.Addr(family), port)
			if got := wire.saw(src, dst); got != want {
				return fmt.Errorf("%v -> %v on the wire: got %v, want %v", src, dst, got, want)
			}
			return nil
		}
		// Without guard such a packet does leave the node, so this test can fail; and port 15008 is open with it.
		testutil.Eventually(t, 20*time.Second, func() error { return wantSYN(unguarded, 80, true) })
		testutil.Eventually(t, 20*time.Second, func() error { return wantSYN(guarded, HBONEPort, true) })
		if err := wantSYN(guarded, 80, false); err != nil {
			t.Error(err)
		}
	})
	if got := guarded.count(t, VerdictDropLeak); got != 2 {
		t.Errorf("drop-leak: got %d, want 2", got)
	}
}

// Tags of VLAN 0 come off on the way, one before guard and the rest after it.
func TestGuardStopsWhatHidesBehindVLANTags(t *testing.T) {
	w := newWorld(t)
	unguarded := w.enrol(t, w.host.Pod(t, "unguarded"), func(c *PodConfig) { c.HostIfindexes = nil })
	guarded, server := w.enrol(t, w.host.Pod(t, "guarded")), w.host.Pod(t, "server")
	w.mesh(t, server)
	wire := sniff(t, w.host.NS, server.HostIf)
	eachFamily(t, func(t *testing.T, family string) {
		dst := netip.AddrPortFrom(server.Addr(family), 80)
		port := uint16(5000)
		for _, tags := range [][]uint16{{unix.ETH_P_8021Q}, {unix.ETH_P_8021Q, unix.ETH_P_8021Q}, {unix.ETH_P_8021AD, unix.ETH_P_8021Q}} {
			port++
			for _, pod := range []*enrolled{guarded, unguarded} {
				f := frame{src: netip.AddrPortFrom(pod.Addr(family), port), dst: dst, flags: flagSYN}
				newRawSocket(t, w.host, pod.Pod, true).send(t, f, tags...)
			}
			testutil.Eventually(t, 20*time.Second, func() error {
				if src := netip.AddrPortFrom(unguarded.Addr(family), port); !wire.saw(src, dst) {
					return fmt.Errorf("%#x: %v is not on the wire: the test cannot fail", tags, src)
				}
				return nil
			})
			if src := netip.AddrPortFrom(guarded.Addr(family), port); wire.saw(src, dst) {
				t.Errorf("%#x: %v went past guard", tags, src)
			}
		}
	})
	if got := guarded.count(t, VerdictDropLeak) + guarded.count(t, VerdictDropLeakTagged); got != 6 {
		t.Errorf("drop-leak and drop-leak-tagged: got %d, want 6", got)
	}
}

// TestGuardLeavesStrangersAlone: all that an enrolled pod may do goes past it untouched.
func TestGuardLeavesStrangersAlone(t *testing.T) {
	w := newWorld(t)
	client, outside := w.enrol(t, w.host.Pod(t, "client")), w.host.Pod(t, "outside")
	w.mesh(t)
	eachFamily(t, func(t *testing.T, family string) {
		addr := netip.AddrPortFrom(outside.Addr(family), 80)
		outside.Echo(t, "outside", addr.String())
		wantAnswer(t, client.NS, addr, "outside", client.Addr(family))
		wantUDP(t, client.NS, outside, outside.Addr(family))
	})
	for v, n := range map[Verdict]uint64{VerdictDropLeak: 0, VerdictDropLeakFragment: 0, VerdictDropLeakHeaders: 0} {
		if got := client.count(t, v); got != n {
			t.Errorf("%v: got %d, want %d", v, got, n)
		}
	}
}

// wantUDP sends a datagram there and back.
func wantUDP(t *testing.T, from *testutil.NS, to *testutil.Pod, addr netip.Addr) {
	t.Helper()
	var server net.PacketConn
	to.MustDo(t, func() (err error) {
		server, err = net.ListenPacket("udp", netip.AddrPortFrom(addr, 0).String())
		return err
	})
	defer func() { _ = server.Close() }()
	client, err := from.Dial(context.Background(), "udp", server.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	deadline := time.Now().Add(2 * time.Second)
	_, _ = server.SetDeadline(deadline), client.SetDeadline(deadline)
	buf := make([]byte, 16)
	if _, err := client.Write([]byte("ping")); err != nil {
		t.Error(err)
	}
	_, peer, err := server.ReadFrom(buf)
	if err != nil {
		t.Error(err)
		return
	}
	if _, err := server.WriteTo([]byte("pong"), peer); err != nil {
		t.Error(err)
	}
	if n, err := client.Read(buf); err != nil || string(buf[:n]) != "pong" {
		t.Errorf("got %q, %v, want pong", buf[:n], err)
	}
}
