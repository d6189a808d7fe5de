// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

func TestFlowsOfEveryPath(t *testing.T) {
	w := newWorld(t)
	podNS, server, stranger := w.host.Pod(t, "pod"), w.host.Pod(t, "server"), w.host.Pod(t, "stranger")
	pod := w.enrol(t, podNS, withAddresses(podNS))
	pod.proxy.deliver.Store(true)
	w.mesh(t, server)
	w.attachHost(t, HostConfig{Flows: true, Probe: true, ProbeCgroup: cgroupRoot(t)})
	log := w.watchFlows(t)
	netns := pod.bpf.Info().NetnsCookie
	const n = 100_000
	eachFamily(t, func(t *testing.T, family string) {
		for _, half := range []bool{true, false} {
			port := uint16(80)
			if !half {
				port = 81
			}
			app := netip.AddrPortFrom(pod.Addr(family), port)
			pod.Echo(t, "app", app.String())
			out := netip.AddrPortFrom(stranger.Addr(family), port)
			stranger.Echo(t, "stranger", out.String())
			mesh := netip.AddrPortFrom(server.Addr(family), port)

			local, got := exchange(t, pod.NS, out, n, half)
			log.wantClosed(t, local, out, FlowEvent{NetnsCookie: netns, Outbound: true, Path: FlowPassthrough, Sent: n, Received: got})
			local, got = exchange(t, pod.NS, mesh, n, false)
			log.wantClosed(t, local, mesh, FlowEvent{NetnsCookie: netns, Outbound: true, Path: FlowCaptured, Sent: n, Received: got})
			if theirs := log.of(mesh, local); len(theirs) > 0 {
				t.Errorf("ztunnel's socket: got %+v, want nothing", theirs)
			}
			local, got = exchange(t, w.host.NS, app, n, half)
			log.wantClosed(t, app, local, FlowEvent{NetnsCookie: netns, Path: FlowProbe, Sent: got, Received: n})
			local, got = exchange(t, pod.NS, app, n, half)
			log.wantClosed(t, local, app, FlowEvent{NetnsCookie: netns, Outbound: true, Path: FlowLocal, Sent: n, Received: got})
			log.wantClosed(t, app, local, FlowEvent{NetnsCookie: netns, Path: FlowLocal, Sent: got, Received: n})
		}
		// ztunnel takes a port of its own.
		app := netip.AddrPortFrom(pod.Addr(family), 80)
		exchange(t, stranger.NS, app, n, true)
		testutil.Eventually(t, 20*time.Second, func() error {
			log.mu.Lock()
			defer log.mu.Unlock()
			for _, e := range log.events {
				if e.Local == app && e.Remote.Addr() == stranger.Addr(family) && e.Kind == FlowClose {
					if e.Path != FlowDelivery || e.Received != n || e.Sent < n || e.Outbound {
						t.Errorf("delivery: got %+v", e)
					}
					return nil
				}
			}
			return errors.New("no delivery told of")
		})
	})
	log.mu.Lock()
	defer log.mu.Unlock()
	for _, e := range log.events {
		if e.NetnsCookie != netns {
			t.Errorf("of a pod that is not enrolled: %+v", e)
		}
	}
}

func TestRefusedConnectionsAreToldOf(t *testing.T) {
	w := newWorld(t)
	pod, stranger := w.enrol(t, w.host.Pod(t, "pod")), w.host.Pod(t, "stranger")
	w.mesh(t)
	w.attachHost(t, HostConfig{Flows: true})
	log := w.watchFlows(t)
	addr := netip.AddrPortFrom(stranger.Addr4, 80)
	if _, err := pod.AskFrom(addr); err == nil {
		t.Fatal("connected")
	}
	testutil.Eventually(t, 20*time.Second, func() error {
		log.mu.Lock()
		defer log.mu.Unlock()
		for _, e := range log.events {
			if e.Remote == addr && e.Kind == FlowClose && e.State == "syn-sent" && e.Path == FlowPassthrough && e.Sent+e.Received == 0 {
				return nil
			}
		}
		return fmt.Errorf("got %+v", log.events)
	})
}

// TestSocketUsedAgain: each connection of a socket is told of once, and nothing of what it is used for afterwards.
func TestSocketUsedAgain(t *testing.T) {
	w := newWorld(t)
	pod, stranger := w.enrol(t, w.host.Pod(t, "pod")), w.host.Pod(t, "stranger")
	w.mesh(t)
	w.attachHost(t, HostConfig{Flows: true})
	log := w.watchFlows(t)
	open, last := stranger.Listen(t, "tcp", netip.AddrPortFrom(stranger.Addr4, 0).String()), uint16(1)
	port := addrPortOf(open.Addr()).Port()
	pod.MustDo(t, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		to := func(port uint16) error {
			return unix.Connect(fd, &unix.SockaddrInet4{Addr: stranger.Addr4.As4(), Port: int(port)})
		}
		if err := to(last); !errors.Is(err, unix.ECONNREFUSED) {
			return fmt.Errorf("connect to a port of nobody: got %w", err)
		}
		for range 2 {
			if err := errors.Join(to(port), disconnect(fd)); err != nil {
				return err
			}
		}
		if err := errors.Join(unix.Listen(fd, 1), disconnect(fd)); err != nil {
			return err
		}
		if err := to(last); !errors.Is(err, unix.ECONNREFUSED) {
			return fmt.Errorf("connect to a port of nobody: got %w", err)
		}
		return unix.Close(fd)
	})
	want := fmt.Sprintf("[close %d open %d close %d open %d close %d close %d]", last, port, port, port, port, last)
	testutil.Eventually(t, 20*time.Second, func() error {
		log.mu.Lock()
		defer log.mu.Unlock()
		got := []string{}
		for _, e := range log.events {
			got = append(got, fmt.Sprintf("%v %d", e.Kind, e.Remote.Port()))
		}
		if fmt.Sprint(got) != want {
			return fmt.Errorf("got %v, want %s", got, want)
		}
		return nil
	})
}

// disconnect has a socket as new; a listener's stops listening.
func disconnect(fd int) error {
	unspec := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&unspec)), unsafe.Sizeof(unspec))
	if errno != 0 {
		return fmt.Errorf("disconnect: %w", errno)
	}
	return nil
}

// TestFlowsInUseAreToldOf: whichever side sends, and with counters beyond 32 bits nobody waits for here.
func TestFlowsInUseAreToldOf(t *testing.T) {
	w := newWorld(t)
	pod, stranger := w.enrol(t, w.host.Pod(t, "pod")), w.host.Pod(t, "stranger")
	w.mesh(t)
	w.attachHost(t, HostConfig{Flows: true, FlowInterval: time.Millisecond})
	log := w.watchFlows(t)
	for name, podSends := range map[string]bool{"the pod sends": true, "the pod receives": false} {
		t.Run(name, func(t *testing.T) {
			l := stranger.Listen(t, "tcp", netip.AddrPortFrom(stranger.Addr4, 0).String())
			conn, err := pod.Dial(context.Background(), "tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			peer, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = peer.Close() }()
			from, to := conn, peer
			if !podSends {
				from, to = peer, conn
			}
			var done sync.WaitGroup
			done.Go(func() { _, _ = io.Copy(io.Discard, to) })
			local, remote := addrPortOf(conn.LocalAddr()), addrPortOf(conn.RemoteAddr())
			testutil.Eventually(t, 20*time.Second, func() error {
				if _, err := from.Write(make([]byte, 64<<10)); err != nil {
					return err
				}
				var updates int
				var bytes uint64
				for _, e := range log.of(local, remote) {
					if e.Kind == FlowUpdate && e.Sent+e.Received > bytes {
						updates, bytes = updates+1, e.Sent+e.Received
					}
				}
				if updates < 3 {
					return fmt.Errorf("got %d updates with more bytes each, want 3", updates)
				}
				return nil
			})
			_ = from.Close()
			done.Wait()
		})
	}
}

// TestFullRingChangesNothing: events are lost and counted, connections are not.
func TestFullRingChangesNothing(t *testing.T) {
	w := newWorld(t)
	pod, stranger := w.enrol(t, w.host.Pod(t, "pod")), w.host.Pod(t, "stranger")
	w.mesh(t)
	small := w.shrinkRing(t, 4096)
	w.attachHost(t, HostConfig{Flows: true})
	addr := netip.AddrPortFrom(stranger.Addr4, 80)
	stranger.Echo(t, "stranger", addr.String())
	const conns = 50
	for range conns {
		wantAnswer(t, pod.NS, addr, "stranger", pod.Addr4)
	}
	r, err := w.Flows()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	read := uint64(0)
	r.SetDeadline(time.Now().Add(200 * time.Millisecond))
	for e := (FlowEvent{}); ; read++ {
		if err := r.Read(&e); errors.Is(err, os.ErrDeadlineExceeded) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	lost, err := r.Lost()
	if err != nil || lost == 0 || read == 0 || read > uint64(small) || read+lost != 2*conns {
		t.Errorf("%d read and %d lost, %v; want %d", read, lost, err, 2*conns)
	}
}

// shrinkRing gives the node a ring of another size.
func (w *world) shrinkRing(t *testing.T, size uint32) uint32 {
	t.Helper()
	spec, err := flowsSpec()
	if err != nil {
		t.Fatal(err)
	}
	ring := spec.Maps[flowsMapFlowEvents].Copy()
	ring.MaxEntries = size
	m, err := ebpf.NewMap(ring)
	if err != nil {
		t.Fatal(err)
	}
	_ = w.Node.host.FlowEvents.Close()
	w.Node.host.FlowEvents = m // closed with the node
	return size
}
