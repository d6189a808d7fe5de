// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// BenchmarkPrograms runs each program as the kernel does, without the system call around it.
func BenchmarkPrograms(b *testing.B) {
	testutil.RequireRoot(b)
	bench := newBench(b, settings{})
	bench.fillSlots(b)
	for _, f := range bothFamilies {
		bench.mesh(b, f.member.Addr())
		syn := func(f frame) []byte { f.flags = flagSYN; return f.bytes() }
		data := frame{src: f.pod, dst: f.stranger, flags: flagACK, payload: make([]byte, 1000)}
		for _, each := range []struct {
			name string
			prog *ebpf.Program
			data []byte
		}{
			{"capture SYN to a member", bench.Capture, syn(frame{src: f.pod, dst: f.member})},
			{"capture SYN to a stranger", bench.Capture, syn(frame{src: f.pod, dst: f.stranger})},
			{"capture data without tag", bench.Capture, data.bytes()},
			{"local SYN", bench.Local, syn(frame{src: f.member, dst: f.pod})},
			{"guard SYN", bench.Guard, syn(frame{src: f.pod, dst: f.stranger})},
			{"guard data", bench.Guard, data.bytes()},
		} {
			b.Run(f.name+" "+each.name, func(b *testing.B) {
				bench.ns.MustDo(b, func() error {
					_, err := each.prog.Run(&ebpf.RunOptions{Data: each.data, Repeat: uint32(b.N)})
					return err
				})
			})
		}
	}
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
