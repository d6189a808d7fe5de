// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// script is a source of events that were written beforehand.
type script struct {
	events chan bpf.FlowEvent
	closed chan struct{}
}

func newScript(events ...bpf.FlowEvent) *script {
	s := &script{events: make(chan bpf.FlowEvent, len(events)), closed: make(chan struct{})}
	for _, e := range events {
		s.events <- e
	}
	return s
}

func (s *script) Read(e *bpf.FlowEvent) error {
	select {
	case *e = <-s.events:
		return nil
	case <-s.closed:
		return os.ErrClosed
	}
}
func (s *script) Close() error          { close(s.closed); return nil }
func (s *script) Lost() (uint64, error) { return 7, nil }

var began = time.Unix(1000, 0)

func event(kind bpf.FlowKind, socket uint64, second int, sent uint64) bpf.FlowEvent {
	return bpf.FlowEvent{
		Kind: kind, Socket: socket, At: began.Add(time.Duration(second) * time.Second), NetnsCookie: 1, Outbound: true,
		Path: bpf.FlowCaptured, Sent: sent, RTT: time.Millisecond,
		Local: netip.MustParseAddrPort("10.0.0.1:1"), Remote: netip.MustParseAddrPort("10.0.0.2:80"),
	}
}

func newTable() *Table {
	return New(func() ([]bpf.PodInfo, error) {
		return []bpf.PodInfo{{NetnsCookie: 1, Namespace: "shop", Name: "cart", UID: "u1"}}, nil
	}, slog.New(slog.DiscardHandler))
}

func valueOf(t *testing.T, c prometheus.Counter) float64 {
	t.Helper()
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}

func TestTableKeepsOpenAndEnded(t *testing.T) {
	tb := newTable()
	for _, e := range []bpf.FlowEvent{
		event(bpf.FlowOpen, 1, 0, 0), event(bpf.FlowOpen, 2, 1, 0), event(bpf.FlowUpdate, 1, 2, 100),
		event(bpf.FlowClose, 1, 3, 150), event(bpf.FlowClose, 3, 4, 0),
	} {
		if e.Socket == 3 {
			e.State = "syn-sent"
		}
		tb.take(&e)
	}
	got := tb.Snapshot()
	if len(got) != 3 {
		t.Fatalf("got %+v, want three flows", got)
	}
	for i, want := range []struct {
		kind    string
		sent    uint64
		refused bool
	}{{"open", 0, false}, {"close", 150, false}, {"close", 0, true}} {
		f := got[i]
		if f.Kind != want.kind || f.Sent != want.sent || f.Refused != want.refused || f.Namespace != "shop" || f.Pod != "cart" {
			t.Errorf("flow %d: got %+v, want %+v of shop/cart", i, f, want)
		}
	}
	if got := valueOf(t, tb.figures.bytes.WithLabelValues("captured", "outbound", "sent")); got != 150 {
		t.Errorf("bytes: got %v, want 150", got)
	}
	if got := valueOf(t, tb.figures.opened.WithLabelValues("captured", "outbound")); got != 2 {
		t.Errorf("opened: got %v, want 2", got)
	}
	if got := valueOf(t, tb.figures.refused.WithLabelValues("captured", "outbound")); got != 1 {
		t.Errorf("refused: got %v, want 1", got)
	}
}

// TestConnectionsFromBeforeAreNoNews: after a restart, old connections neither open again nor move their bytes again, and
// one that ends is not taken for refused.
func TestConnectionsFromBeforeAreNoNews(t *testing.T) {
	tb := newTable()
	for _, e := range []bpf.FlowEvent{event(bpf.FlowUpdate, 1, 0, 1000), event(bpf.FlowUpdate, 1, 1, 1500), event(bpf.FlowClose, 2, 2, 0)} {
		e.State = "established"
		tb.take(&e)
	}
	if opened, bytes := valueOf(t, tb.figures.opened.WithLabelValues("captured", "outbound")), valueOf(t, tb.figures.bytes.WithLabelValues("captured", "outbound", "sent")); opened != 0 || bytes != 500 {
		t.Errorf("got %v opened, %v bytes, want 0 and 500", opened, bytes)
	}
	for _, f := range tb.Snapshot() {
		if f.Refused {
			t.Errorf("refused: %+v", f)
		}
	}
}

func TestTableForgetsTheOldest(t *testing.T) {
	tb := newTable()
	for i := range maxEnded + 10 {
		e := event(bpf.FlowClose, uint64(i), i, 1)
		tb.take(&e)
	}
	if got := tb.Snapshot(); len(got) != maxEnded || !got[0].At.Equal(began.Add(10*time.Second)) {
		t.Errorf("got %d flows from %v on", len(got), got[0].At)
	}
}

// TestFollow: what is kept comes first, then what happens; a reader that stalls is told how much it missed.
func TestFollow(t *testing.T) {
	tb := newTable()
	first := event(bpf.FlowOpen, 1, 0, 0)
	tb.take(&first)
	ctx, cancel := context.WithCancel(t.Context())
	stalled, goOn, got := make(chan struct{}), make(chan struct{}), make(chan Flow, 2*subscriberEvents)
	done := make(chan error, 1)
	n := 0
	go func() {
		done <- tb.Follow(ctx, true, func(f Flow) error {
			if n++; n == 1 {
				close(stalled)
				<-goOn
			}
			got <- f
			return nil
		})
	}()
	<-stalled
	for i := range subscriberEvents + 5 {
		e := event(bpf.FlowOpen, uint64(10+i), 1+i, 0)
		tb.take(&e)
	}
	close(goOn)
	for range subscriberEvents + 1 {
		<-got
	}
	late := event(bpf.FlowOpen, 9999, 9999, 0)
	tb.take(&late)
	if f := <-got; f.Missed != 5 {
		t.Errorf("missed: got %d, want 5", f.Missed)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	failing := errors.New("gone")
	if err := tb.Follow(t.Context(), false, func(Flow) error { return failing }); !errors.Is(err, failing) {
		t.Errorf("got %v, want %v", err, failing)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	tb, src := newTable(), newScript(event(bpf.FlowOpen, 1, 0, 0))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- tb.Run(ctx, src) }()
	testutil.Eventually(t, 20*time.Second, func() error {
		if len(tb.Snapshot()) == 0 {
			return errors.New("the event was not taken")
		}
		return nil
	})
	registry := prometheus.NewRegistry()
	registry.MustRegister(tb)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		m := f.GetMetric()[0]
		got[f.GetName()] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
	}
	if got["sluice_flow_events_lost_total"] != 7 || got["sluice_flows_open"] != 1 || got["sluice_flows_opened_total"] != 1 {
		t.Errorf("got %v", got)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
