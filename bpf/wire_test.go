// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// wire records the TCP packets that pass an interface, in both directions.
type wire struct {
	fd      int
	mu      sync.Mutex
	flows   map[captureFlow]int            // packets
	clients map[netip.Addr]map[uint16]bool // ports (network order) that SYNs came from
	data    map[captureFlow]int            // bytes of payload
	opened  map[captureFlow]bool           // had a SYN
	done    chan struct{}
}

// htons is a port or an EtherType in network order.
func htons(v uint16) uint16 { return portBE(v) }

// sniff starts recording on an interface of a namespace until the test ends.
func sniff(t *testing.T, ns *testutil.NS, dev string) *wire {
	t.Helper()
	w := &wire{
		flows: map[captureFlow]int{}, data: map[captureFlow]int{}, opened: map[captureFlow]bool{},
		clients: map[netip.Addr]map[uint16]bool{}, done: make(chan struct{}),
	}
	index := ns.Ifindex(t, dev)
	ns.MustDo(t, func() (err error) {
		if w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if err = unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20); err != nil {
			return err
		}
		// Wakes the reader regularly, to see whether it is done.
		tv := unix.Timeval{Usec: 50_000}
		if err = unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
			return err
		}
		return unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: index})
	})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		w.read()
	}()
	t.Cleanup(func() {
		close(w.done)
		<-stopped
		_ = unix.Close(w.fd)
	})
	return w
}

func (w *wire) read() {
	buf := make([]byte, 128)
	for {
		n, _, err := unix.Recvfrom(w.fd, buf, unix.MSG_TRUNC)
		if err == nil {
			w.record(buf[:min(n, len(buf))], n)
			continue
		}
		select {
		case <-w.done:
			return
		default:
		}
	}
}

func (w *wire) record(b []byte, total int) {
	var src, dst netip.Addr
	var segment []byte
	switch {
	case len(b) >= 40 && b[0]>>4 == 4 && b[9] == unix.IPPROTO_TCP:
		src, _ = netip.AddrFromSlice(b[12:16])
		dst, _ = netip.AddrFromSlice(b[16:20])
		segment = b[4*(b[0]&15):]
	case len(b) >= 60 && b[0]>>4 == 6 && b[6] == unix.IPPROTO_TCP:
		src, _ = netip.AddrFromSlice(b[8:24])
		dst, _ = netip.AddrFromSlice(b[24:40])
		segment = b[40:]
	default:
		return
	}
	flow := newFlow(
		netip.AddrPortFrom(src, binary.BigEndian.Uint16(segment)),
		netip.AddrPortFrom(dst, binary.BigEndian.Uint16(segment[2:])))
	payload := total - (len(b) - len(segment)) - 4*int(segment[12]>>4)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.flows[flow]++
	w.data[flow] += payload
	if segment[13]&(flagSYN|flagACK) == flagSYN {
		if w.clients[src] == nil {
			w.clients[src] = map[uint16]bool{}
		}
		w.clients[src][flow.Sport] = true
		w.opened[flow] = true
	}
}

// wantOnly checks every flow that was seen.
func (w *wire) wantOnly(t *testing.T, ok func(captureFlow) error) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.flows) == 0 {
		t.Error("nothing was seen on the wire")
	}
	for flow, n := range w.flows {
		if err := ok(flow); err != nil {
			t.Errorf("on the wire: %d packets %v: %v", n, describe(flow), err)
		}
	}
}

// saw tells whether a packet of this direction of a connection was seen.
func (w *wire) saw(src, dst netip.AddrPort) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.flows[newFlow(src, dst)] > 0
}

// wantNone checks that no packet from one pod to the other was seen.
func (w *wire) wantNone(t *testing.T, from, to *testutil.Pod) {
	t.Helper()
	w.wantAtMost(t, from, to, func(int) bool { return false })
}

// wantNoPayload lets packets without payload be seen, resets for instance.
func (w *wire) wantNoPayload(t *testing.T, from, to *testutil.Pod) {
	t.Helper()
	w.wantAtMost(t, from, to, func(payload int) bool { return payload == 0 })
}

func (w *wire) wantAtMost(t *testing.T, from, to *testutil.Pod, ok func(payload int) bool) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for flow, n := range w.flows {
		for _, family := range []string{"4", "6"} {
			if flow.Src == newAddress(from.Addr(family)) && flow.Dst == newAddress(to.Addr(family)) && !ok(w.data[flow]) {
				t.Errorf("on the wire: %d packets %s, %d bytes of payload", n, describe(flow), w.data[flow])
			}
		}
	}
}

// wantNoneTo checks that nobody opened a connection to a pod or sent it payload, and that from sent nothing at all.
func (w *wire) wantNoneTo(t *testing.T, from, to *testutil.Pod) {
	t.Helper()
	w.wantNone(t, from, to)
	w.mu.Lock()
	defer w.mu.Unlock()
	for flow, n := range w.flows {
		if flow.Dst != newAddress(to.Addr4) && flow.Dst != newAddress(to.Addr6) {
			continue
		}
		if w.data[flow] > 0 || w.opened[flow] {
			t.Errorf("on the wire: %d packets %s, %d bytes of payload, SYN %t", n, describe(flow), w.data[flow], w.opened[flow])
		}
	}
}

func describe(f captureFlow) string {
	text := func(a captureAddress, portBE uint16) string {
		var b [16]byte
		for i, word := range a.Word {
			binary.NativeEndian.PutUint32(b[4*i:], word)
		}
		return netip.AddrPortFrom(netip.AddrFrom16(b).Unmap(), htons(portBE)).String()
	}
	return text(f.Src, f.Sport) + " -> " + text(f.Dst, f.Dport)
}

// connOf wraps a connected socket; it is closed with the test.
func connOf(t *testing.T, fd int) net.Conn {
	t.Helper()
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "conn")
	defer func() { _ = f.Close() }()
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// connFD is valid as long as c is.
func connFD(t *testing.T, c net.Conn) (fd int) {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(p uintptr) { fd = int(p) }); err != nil {
		t.Fatal(err)
	}
	return fd
}

// cookiesSent reads the namespace's counter of SYN cookies.
func cookiesSent(t *testing.T, ns *testutil.NS) int {
	t.Helper()
	var text []byte
	ns.MustDo(t, func() (err error) {
		text, err = os.ReadFile("/proc/thread-self/net/netstat")
		return err
	})
	lines := strings.Split(string(text), "\n")
	names, values := strings.Fields(lines[0]), strings.Fields(lines[1])
	for i, name := range names {
		if name == "SyncookiesSent" {
			n := 0
			for _, c := range values[i] {
				n = 10*n + int(c-'0')
			}
			return n
		}
	}
	t.Fatal("no SyncookiesSent in netstat")
	return 0
}
