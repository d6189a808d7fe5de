// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

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
