// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// BenchmarkPrograms runs each program as the kernel does, without the system call around it. What settings cost shows in
// the same packets with them.
func BenchmarkPrograms(b *testing.B) {
	testutil.RequireRoot(b)
	plain := newBench(b, settings{})
	all := newBenchWith(b, settings{captureDNS: true, bypassInbound: true}, excludedNets)
	for _, bench := range []*bench{plain, all} {
		bench.fillSlots(b)
		for _, f := range bothFamilies {
			// Members that are in no excluded network.
			bench.mesh(b, peerOf(f).Addr())
		}
	}
	for _, f := range bothFamilies {
		for _, each := range []struct {
			name string
			set  *bench
		}{{"", plain}, {" all settings", all}} {
			each.set.benchmark(b, f, each.name)
		}
	}
}

// peerOf is a member that excludedNets do not cover.
func peerOf(f family) netip.AddrPort {
	addr := f.pod.Addr()
	for range 9 {
		addr = addr.Next()
	}
	return netip.AddrPortFrom(addr, 80)
}

func (bench *bench) benchmark(b *testing.B, f family, suffix string) {
	syn := func(src, dst netip.AddrPort) frame { return frame{src: src, dst: dst, flags: flagSYN} }
	data := frame{src: f.pod, dst: f.stranger, flags: flagACK, payload: make([]byte, 1000)}
	udp := frame{src: f.pod, dst: f.stranger, proto: unix.IPPROTO_UDP}
	query := udp
	query.dst = netip.AddrPortFrom(f.stranger.Addr(), 53)
	for _, each := range []struct {
		name  string
		prog  *ebpf.Program
		frame frame
	}{
		{"capture SYN to a member", bench.Capture, syn(f.pod, peerOf(f))},
		{"capture SYN to a stranger", bench.Capture, syn(f.pod, f.stranger)},
		{"capture data without tag", bench.Capture, data},
		{"capture UDP", bench.Capture, udp},
		{"capture query", bench.Capture, query},
		{"local SYN", bench.Local, syn(f.member, f.pod)},
		{"local data", bench.Local, data},
		{"guard SYN", bench.Guard, syn(f.pod, f.stranger)},
		{"guard data", bench.Guard, data},
	} {
		b.Run(f.name+" "+each.name+suffix, func(b *testing.B) {
			bench.ns.MustDo(b, func() error {
				_, err := each.prog.Run(&ebpf.RunOptions{Data: each.frame.bytes(), Repeat: uint32(b.N)})
				return err
			})
			perPacket(b, b.Elapsed(), uint64(b.N))
		})
	}
}

// perPacket takes the place of ns/op.
func perPacket(b *testing.B, took time.Duration, packets uint64) {
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(took.Nanoseconds())/float64(packets), "ns/packet")
}

// BenchmarkSegments is what capture takes for the segments of real sockets, whose tag it finds: no test run has a socket
// of a connection. Each segment is the ping or the acknowledgement of a pong. The kernel's statistics add two readings
// of the clock.
func BenchmarkSegments(b *testing.B) {
	testutil.RequireRoot(b)
	n, err := LoadNode(filepath.Join(testutil.BPFFS(b), "sluice", "v1"))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = n.Close() }()
	w := &world{Node: n, host: testutil.NewNode(b)}
	pod, server := w.host.Pod(b, "pod"), w.host.Pod(b, "server")
	p, err := w.tryAttach(pod)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	if err := n.Destinations().SetComplete(true); err != nil {
		b.Fatal(err)
	}
	capture, err := pinnedProgram(filepath.Join(p.dir, capturePin(pod.Ifindex(b, "eth0"))))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = capture.Close() }()
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = stats.Close() }()
	proxys := func(_, _ string, raw syscall.RawConn) (err error) {
		return errors.Join(raw.Control(func(fd uintptr) { err = n.TagSocket(int(fd), TagProxy) }), err)
	}
	for _, family := range []string{"4", "6"} {
		addr := netip.AddrPortFrom(server.Addr(family), 8080)
		server.Echo(b, "server", addr.String())
		b.Run("IPv"+family+" passthrough", func(b *testing.B) {
			pingPong(b, capture, pod, &net.Dialer{}, addr)
		})
		b.Run("IPv"+family+" ztunnel's own", func(b *testing.B) {
			pingPong(b, capture, pod, &net.Dialer{Control: proxys}, addr)
		})
	}
}

func pingPong(b *testing.B, capture *ebpf.Program, from *testutil.Pod, dialer *net.Dialer, addr netip.AddrPort) {
	c, err := from.DialWith(b.Context(), dialer, "tcp", addr.String())
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := testutil.Ask(c); err != nil {
		b.Fatal(err)
	}
	before, err := capture.Stats()
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := testutil.Ping(c); err != nil {
			b.Fatal(err)
		}
	}
	after, err := capture.Stats()
	if err != nil {
		b.Fatal(err)
	}
	perPacket(b, after.Runtime-before.Runtime, after.RunCount-before.RunCount)
}

// BenchmarkAttachPod is our part of a CNI ADD: from a pod without programs to one with all of them.
func BenchmarkAttachPod(b *testing.B) {
	testutil.RequireRoot(b)
	n, err := LoadNode(filepath.Join(testutil.BPFFS(b), "sluice", "v1"))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = n.Close() }()
	host := testutil.NewNode(b)
	pod := host.Pod(b, "pod")
	cfg := PodConfig{ID: "pod", NetnsPath: pod.Path, Interfaces: []string{"eth0"}, HostIfindexes: []int{pod.HostIfindex}}
	host.MustDo(b, func() error {
		for b.Loop() {
			p, err := n.AttachPod(cfg)
			if err != nil {
				return err
			}
			b.StopTimer()
			if err := errors.Join(p.Close(), n.DetachPod(cfg.ID)); err != nil {
				return err
			}
			b.StartTimer()
		}
		return nil
	})
}
