// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/ztunnel/discovery"
	"github.com/sluice-mesh/sluice/ztunnel/telemetry"
)

// newIdleProxy is a proxy without pods, for its connection table.
func newIdleProxy(t *testing.T) *Proxy {
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	return New(t.Context(), Config{
		Store: discovery.NewStore(), Metrics: telemetry.NewMetrics("test"), Access: telemetry.NewAccessLog(log), Log: log,
	})
}

func (p *Proxy) beginTest(t *testing.T) (context.Context, *flow) {
	t.Helper()
	// Two connections may look the same in every respect.
	src, dst := netip.MustParseAddrPort("10.0.0.1:1000"), netip.MustParseAddrPort("10.0.0.2:80")
	ctx, f := p.begin(t.Context(), telemetry.Inbound, "u1", src, dst)
	t.Cleanup(func() { f.end(ctx, nil) })
	return ctx, f
}

func denied() error {
	r := refuse(VerdictPolicy, "no").flagged(telemetry.FlagDeny)
	r.policy = "default/deny"
	return r
}

func wantCut(t *testing.T, ctx context.Context, name string) {
	t.Helper()
	select {
	case <-ctx.Done():
	case <-time.After(5 * time.Second):
		t.Fatalf("%s is not cut", name)
	}
	verdict, flags, policy := verdictOf(context.Cause(ctx), VerdictMTLS)
	if verdict != VerdictPolicyChange || flags != telemetry.FlagDeny || policy != "default/deny" || !errors.Is(context.Cause(ctx), errPolicyChange) {
		t.Errorf("%s: got %s, %s, %s, %v", name, verdict, flags, policy, context.Cause(ctx))
	}
}

func change(p *Proxy) {
	p.Store.Apply(discovery.Update{Policies: []*discovery.Policy{{Namespace: "n", Name: time.Now().String()}}})
}

func TestPolicyChangeCutsOnlyWhatItDenies(t *testing.T) {
	p := newIdleProxy(t)
	var deny atomic.Bool
	cutCtx, cut := p.beginTest(t)
	keptCtx, kept := p.beginTest(t)
	_, unchecked := p.beginTest(t)
	if err := cut.check(func() error {
		if deny.Load() {
			return denied()
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := kept.check(func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	deny.Store(true)
	change(p)
	wantCut(t, cutCtx, "the denied connection")
	if keptCtx.Err() != nil {
		t.Error("an allowed connection was cut")
	}
	unchecked.recheck() // an outbound one, for instance
	if got := len(p.Connections()); got != 3 {
		t.Errorf("tracked: got %d connections, want 3", got)
	}
}

func TestPolicyChangeDuringTheCheckIsNotMissed(t *testing.T) {
	p := newIdleProxy(t)
	ctx, f := p.beginTest(t)
	var calls atomic.Int32
	err := f.check(func() error {
		if calls.Add(1) == 1 {
			change(p) // after the policies were looked up, before the answer
			return nil
		}
		return denied()
	})
	if err != nil {
		t.Fatal(err)
	}
	wantCut(t, ctx, "the connection that was just allowed")
}
