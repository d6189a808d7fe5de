// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/bpf"
)

// TestTableForgetsFlowsWhoseEndWasLost: neither a pod that went nor a full table keeps new flows out.
func TestTableForgetsFlowsWhoseEndWasLost(t *testing.T) {
	tb := newTable()
	for i := range maxOpen + 1 {
		e := event(bpf.FlowOpen, uint64(i), i, 0)
		tb.take(&e)
	}
	if _, ok := tb.open[maxOpen]; !ok || len(tb.open) > maxOpen {
		t.Errorf("got %d open flows, the newest among them: %v", len(tb.open), ok)
	}
	if _, ok := tb.open[0]; ok {
		t.Error("the one that was silent for longest is still there")
	}
	tb.pods = func() ([]bpf.PodInfo, error) { return []bpf.PodInfo{{NetnsCookie: 2, Name: "new"}}, nil }
	tb.refreshed = time.Time{}
	e := event(bpf.FlowOpen, maxOpen+1, maxOpen+1, 0)
	e.NetnsCookie = 2
	tb.take(&e)
	if got := tb.Snapshot(); len(got) != 1 || got[0].Pod != "new" {
		t.Errorf("after the pod went: got %d flows, want the new pod's", len(got))
	}
}
