// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/bpf"
)

// BenchmarkConnection is what a connection that opens and closes costs the table.
func BenchmarkConnection(b *testing.B) {
	t := New(func() ([]bpf.PodInfo, error) {
		return []bpf.PodInfo{{Namespace: "shop", Name: "cart", UID: "u", NetnsCookie: 7}}, nil
	}, slog.New(slog.DiscardHandler))
	e := bpf.FlowEvent{
		NetnsCookie: 7, At: time.Now(), Local: netip.MustParseAddrPort("10.1.0.2:40000"), Remote: netip.MustParseAddrPort("10.1.0.3:80"),
		Outbound: true, Path: bpf.FlowPassthrough, RTT: time.Millisecond, State: "established",
	}
	b.ReportAllocs()
	for b.Loop() {
		e.Socket++
		e.Kind, e.Sent, e.Received = bpf.FlowOpen, 0, 0
		t.take(&e)
		e.Kind, e.Sent, e.Received = bpf.FlowClose, 100, 1000
		t.take(&e)
	}
}
