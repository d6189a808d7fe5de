// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

func TestLocalRecordsConnectionsThatStartOnLo(t *testing.T) {
	b := newBench(t, settings{})
	for _, f := range bothFamilies {
		syn := frame{src: f.member, dst: f.pod, flags: flagSYN}
		for _, tt := range []struct {
			name  string
			frame frame
			mark  uint32
			want  bool
		}{
			{"SYN", syn, 0, true},
			{"SYN with a mark of the app's", syn, 0x1, true},
			{"SYN with payload", frame{src: f.member, dst: f.pod, flags: flagSYN, payload: []byte("x")}, 0, true},
			{"SYN with our mark", syn, SteeringMark, false},
			{"SYN with our mark and more", syn, SteeringMark | 0xffff0fff, false},
			{"SYN ACK", frame{src: f.member, dst: f.pod, flags: flagSYN | flagACK}, 0, false},
			{"data", frame{src: f.member, dst: f.pod, flags: flagACK, payload: []byte("x")}, 0, false},
			{"SYN to loopback", frame{src: f.loopback, dst: f.loopbackPeer, flags: flagSYN}, 0, false},
			{"UDP", frame{src: f.member, dst: f.pod, flags: flagSYN, proto: unix.IPPROTO_UDP}, 0, false},
			{"cut short", frame{src: f.member, dst: f.pod, flags: flagSYN, cut: 8}, 0, false},
		} {
			t.Run(f.name+" "+tt.name, func(t *testing.T) {
				flow := newFlow(tt.frame.src, tt.frame.dst)
				if err := b.maps.LocalFlows.Delete(&flow); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
					t.Fatal(err)
				}
				before := ago(t, 0)
				if got := b.packet(t, b.Local, tt.frame.bytes(), tt.mark); got.act != actNext {
					t.Errorf("result: got %d, want next", int32(got.act))
				}
				var at uint64
				err := b.maps.LocalFlows.Lookup(&flow, &at)
				if got := err == nil; got != tt.want {
					t.Fatalf("recorded: got %v, want %v (%v)", got, tt.want, err)
				}
				if tt.want {
					b.wantCounted(t, VerdictLocalRecorded)
					if now := ago(t, 0); at < before || at > now {
						t.Errorf("time: got %d, want between %d and %d", at, before, now)
					}
				} else {
					b.wantCounted(t, 0)
				}
			})
		}
	}
}
