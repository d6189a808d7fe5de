// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-mesh/sluice/ztunnel/hbone"
	"github.com/sluice-mesh/sluice/ztunnel/telemetry"
)

// flow is one connection: its place among the live ones, its counters, and in the end its log line.
//
// The goroutine that carries the connection owns it. Others may only cut it, recheck it and look at its progress.
type flow struct {
	proxy    *Proxy
	reporter telemetry.Reporter
	began    time.Time
	cancel   context.CancelCauseFunc
	lease    *lease // what a connection that was accepted as such holds

	// fromApp and toApp are the bytes carried from and to the pod's side. Kernel splicing counts them only at the end.
	fromApp, toApp atomic.Uint64

	mu      sync.Mutex // guards what others look at
	access  telemetry.Access
	uid     string
	carried Verdict
	counted *telemetry.Conn // nil until both ends are known
	spliced *net.TCPConn    // the pod's side, nil unless the kernel splices
	allowed func() error    // nil if nothing is to be rechecked
}

// begin makes the flow of a connection that was just accepted. The context ends when the flow is cut; its cause says why.
func (p *Proxy) begin(ctx context.Context, d telemetry.Direction, uid string, src, dst netip.AddrPort) (context.Context, *flow) {
	ctx, cancel := context.WithCancelCause(ctx)
	f := &flow{proxy: p, reporter: telemetry.ReporterSource, began: time.Now(), cancel: cancel, uid: uid}
	if d == telemetry.Inbound {
		f.reporter = telemetry.ReporterDestination
	}
	f.access = telemetry.Access{Direction: d, Src: telemetry.Endpoint{Addr: src}, Dst: telemetry.Endpoint{Addr: dst}}
	p.Metrics.SocketOpened(f.reporter)
	p.live.add(f)
	return ctx, f
}

// known says who the two ends are, and how the connection is carried if nothing goes wrong. It counts from here on.
func (f *flow) known(carried Verdict, labels telemetry.Labels, describe func(*telemetry.Access)) {
	f.knownFrom(f.proxy.Metrics.Series, carried, labels, describe)
}

// knownFrom is known with the given way to the counters.
func (f *flow) knownFrom(series func(telemetry.Labels) *telemetry.Series, carried Verdict, labels telemetry.Labels, describe func(*telemetry.Access)) {
	labels.Reporter = f.reporter
	f.mu.Lock()
	defer f.mu.Unlock()
	f.carried = carried
	describe(&f.access)
	f.counted = series(labels).Open()
	f.proxy.Access.Opened(&f.access)
}

// relay carries the connection between two TCP sockets, app being the pod's side, until it ends. It closes both.
func (f *flow) relay(ctx context.Context, app, peer *net.TCPConn) error {
	f.mu.Lock()
	f.spliced = app
	f.mu.Unlock()
	fromApp, toApp, err := relay(ctx, app, peer)
	f.fromApp.Store(fromApp)
	f.toApp.Store(toApp)
	return err
}

// splice carries the connection between the pod's side and an HBONE stream until it ends. It closes both.
func (f *flow) splice(ctx context.Context, app *net.TCPConn, s *hbone.Stream) error {
	stop := context.AfterFunc(ctx, func() {
		s.Reset(hbone.CodeConnect) // RFC 9113, section 8.5: CANCEL would read as an end of data
		abort(app)
	})
	err := hbone.Splice(app, s, &f.fromApp, &f.toApp)
	stop()
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if isQuiet(err) {
		return nil
	}
	return err
}

// check asks allowed now and again after each policy change, until the flow ends.
func (f *flow) check(allowed func() error) error {
	f.mu.Lock()
	f.allowed = allowed
	f.mu.Unlock()
	return allowed()
}

func (f *flow) recheck() {
	f.mu.Lock()
	allowed := f.allowed
	f.mu.Unlock()
	if allowed == nil {
		return
	}
	if err := allowed(); err != nil {
		f.cancel(policyChange(err))
	}
}

// progress counts the bytes so far.
func (f *flow) progress() {
	f.mu.Lock()
	spliced, counted := f.spliced, f.counted
	f.mu.Unlock()
	if counted == nil {
		return
	}
	fromApp, toApp := f.fromApp.Load(), f.toApp.Load()
	if spliced != nil {
		fromApp, toApp = transferred(spliced)
	}
	counted.Progress(f.towardsInitiator(fromApp, toApp))
}

// towardsInitiator orders byte counts as metrics do: what came from the initiator, what went back. The initiator is the
// pod outbound, its peer inbound.
func (f *flow) towardsInitiator(fromApp, toApp uint64) (received, sent uint64) {
	if f.reporter == telemetry.ReporterSource {
		return fromApp, toApp
	}
	return toApp, fromApp
}

// end counts and logs the end of the connection. If the connection was cut, the reason for that counts, not what it led
// to elsewhere.
func (f *flow) end(ctx context.Context, err error) {
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	f.cancel(nil)
	p := f.proxy
	fromApp, toApp := f.fromApp.Load(), f.toApp.Load()
	p.live.remove(f)
	p.Metrics.SocketClosed(f.reporter)

	f.mu.Lock()
	defer f.mu.Unlock()
	verdict, flags, policy := verdictOf(err, f.carried)
	if flags == telemetry.FlagCertRevoked {
		p.Metrics.CRLRejected(f.reporter)
	}
	p.Metrics.Verdict(string(f.access.Direction), string(verdict))
	f.access.Verdict, f.access.Policy, f.access.Err = string(verdict), policy, err
	f.access.Sent, f.access.Received, f.access.Duration = fromApp, toApp, time.Since(f.began)
	if f.counted == nil {
		p.Access.Failed(&f.access)
		return
	}
	received, sent := f.towardsInitiator(fromApp, toApp)
	f.counted.Close(received, sent, flags)
	p.Access.Complete(&f.access)
}

func (f *flow) connection() Connection {
	f.mu.Lock()
	defer f.mu.Unlock()
	protocol := "TCP"
	if f.access.HBONEAddr != "" {
		protocol = "HBONE"
	}
	return Connection{
		UID: f.uid, Direction: f.access.Direction, Protocol: protocol,
		Src: f.access.Src.Addr.String(), Original: f.access.Dst.Addr.String(), Actual: f.access.Dst.Addr.String(),
	}
}
