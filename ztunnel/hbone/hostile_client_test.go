// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"golang.org/x/net/http2"
)

// TestClientEndsHostileServers is TestServerCutsFloods the other way round: what a server may do to the pool's connection.
// The request, or the stream that it became, ends with an error that says so.
func TestClientEndsHostileServers(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(p *rawPeer, id uint32)
		want string
	}{
		{"PING flood", func(p *rawPeer, _ uint32) {
			flood(p, func() error { return p.WritePing(false, [8]byte{}) })
		}, "ENHANCE_YOUR_CALM"},
		{"SETTINGS flood", func(p *rawPeer, _ uint32) { flood(p, func() error { return p.WriteSettings(flips...) }) }, "ENHANCE_YOUR_CALM"},
		{"SETTINGS acknowledged again and again", func(p *rawPeer, _ uint32) { flood(p, p.WriteSettingsAck) }, "ENHANCE_YOUR_CALM"},
		{"PRIORITY flood", func(p *rawPeer, id uint32) {
			flood(p, func() error { return p.WriteRawFrame(http2.FramePriority, 0, id, make([]byte, 5)) })
		}, "ENHANCE_YOUR_CALM"},
		{"WINDOW_UPDATE flood", func(p *rawPeer, _ uint32) {
			flood(p, func() error { return p.WriteWindowUpdate(0, 1<<20) })
		}, "FLOW_CONTROL_ERROR: window overflow"},
		{"WINDOW_UPDATE flood of bytes", func(p *rawPeer, id uint32) {
			flood(p, func() error { return p.WriteWindowUpdate(id, 1) })
		}, "ENHANCE_YOUR_CALM"},
		{"WINDOW_UPDATE flood on the stream", func(p *rawPeer, id uint32) {
			flood(p, func() error { return p.WriteWindowUpdate(id, 1<<20) })
		}, "FLOW_CONTROL_ERROR: window overflow"},
		{"GOAWAY storm", func(p *rawPeer, id uint32) {
			flood(p, func() error { return p.WriteGoAway(id, http2.ErrCodeNo, make([]byte, 1000)) })
		}, "ENHANCE_YOUR_CALM"},
		{"answers that are not final", func(p *rawPeer, id uint32) {
			for {
				p.headers(id, false, ":status", "103")
			}
		}, "ENHANCE_YOUR_CALM"},
		{"CONTINUATION flood", func(p *rawPeer, id uint32) {
			raw(p, http2.FrameHeaders, 0, id)
			flood(p, func() error { return p.WriteContinuation(id, false, nil) })
		}, "ENHANCE_YOUR_CALM"},
		{"one header of a megabyte", func(p *rawPeer, id uint32) {
			must(p.tb, p.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: make([]byte, ourMaxFrame)}))
		}, "ENHANCE_YOUR_CALM"},
		{"HPACK bomb", func(p *rawPeer, id uint32) {
			must(p.tb, p.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: bomb(p), EndHeaders: true}))
		}, "header list too large"},
		{"empty DATA flood", func(p *rawPeer, id uint32) {
			p.headers(id, false, ":status", "200")
			flood(p, func() error { return p.WriteData(id, false, nil) })
		}, "ENHANCE_YOUR_CALM"},
		{"DATA before the answer", func(p *rawPeer, id uint32) {
			flood(p, func() error { return p.WriteData(id, false, make([]byte, 1000)) })
		}, "DATA before the response"},
		{"a frame larger than agreed", func(p *rawPeer, id uint32) {
			p.headers(id, false, ":status", "200")
			_ = p.WriteRawFrame(http2.FrameData, 0, id, make([]byte, ourMaxFrame+1))
		}, "FRAME_SIZE_ERROR"},
		{"silence", func(*rawPeer, uint32) {}, errCutByTest.Error()},
		{"silence in the middle of a frame", func(p *rawPeer, id uint32) {
			p.headers(id, false, ":status", "200")
			_, _ = p.conn.Write(frameHeader{length: 1000, typ: frameData, stream: id}.appendTo(nil))
		}, errCutByTest.Error()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rs := newRawServer(t)
			before := poolAtRest(t, rs)
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			result := rs.connectAsync(ctx)
			p := rs.accept()
			id := p.request()
			wrote := quietly(t, p, func() { tt.do(p, id) })
			drained := drain(p)
			if tt.want == errCutByTest.Error() {
				<-wrote
				cancel(errCutByTest)
			}
			r := <-result
			if r.err == nil {
				stop := context.AfterFunc(ctx, func() { r.s.Reset(CodeCancel) })
				_, r.err = io.Copy(io.Discard, r.s)
				if context.Cause(ctx) != nil {
					r.err = context.Cause(ctx)
				}
				stop()
				must(t, r.s.Close())
			}
			if r.err == nil || !strings.Contains(r.err.Error(), tt.want) {
				t.Errorf("got %v, want %q", r.err, tt.want)
			}
			if tt.want == CodeEnhanceYourCalm.String() {
				<-drained // the client has closed it
			}
			must(t, p.conn.NetConn().Close())
			<-wrote
			<-drained
			before.again(t, rs.pool.Stats)
		})
	}
}

// TestEndlessDataThatNobodyReads: the server does not care for windows, the caller does not read.
func TestEndlessDataThatNobodyReads(t *testing.T) {
	rs := newRawServer(t)
	before := poolAtRest(t, rs)
	result := rs.connectAsync(t.Context())
	p := rs.accept()
	id := p.request()
	p.headers(id, false, ":status", "200")
	r := <-result
	must(t, r.err)
	for range 64 {
		must(t, p.WriteData(id, false, make([]byte, ourStreamWindow)))
	}
	p.wantReset(id, CodeFlowControl)
	p.wantPong() // the connection goes on, and what came after the reset was dropped
	before.holds(t, 4<<20)
	if _, err := r.s.Read(make([]byte, 1)); !errors.As(err, new(*StreamError)) {
		t.Errorf("read: got %v, want why the stream ended", err)
	}
	must(t, r.s.Close())
	must(t, p.conn.NetConn().Close())
	before.again(t, rs.pool.Stats)
}

// TestServersThatNeverAnswer: callers give up one after the other, on a connection that stays.
func TestServersThatNeverAnswer(t *testing.T) {
	rs := newRawServer(t)
	before := poolAtRest(t, rs)
	var p *rawPeer
	for range 3 * defaultMaxStreams {
		ctx, cancel := withCancel(t)
		result := rs.connectAsync(ctx)
		if p == nil {
			p = rs.accept()
		}
		id := p.request()
		cancel()
		if r := <-result; !errors.Is(r.err, context.Canceled) {
			t.Fatalf("got %v, want context.Canceled", r.err)
		}
		p.wantReset(id, CodeCancel)
	}
	before.holds(t, 2<<20)
	if got := rs.dialCount(); got != 2 { // one of them to measure
		t.Errorf("dials: got %d, want 2", got)
	}
	must(t, p.conn.NetConn().Close())
	before.again(t, rs.pool.Stats)
}

// poolAtRest uses the pool of rs once, so that what the first connection costs for good is paid, and measures.
func poolAtRest(tb testing.TB, rs *rawServer) rest {
	tb.Helper()
	result := rs.connectAsync(tb.Context())
	p := rs.accept()
	p.headers(p.request(), true, ":status", "200")
	r := <-result
	must(tb, r.err)
	must(tb, r.s.Close())
	rs.pool.CloseIdle()
	<-drain(p)
	must(tb, p.conn.Close())
	eventually(tb, func() bool { return rs.pool.Stats().Conns == 0 })
	return measure()
}

// drain reads what the peer is sent until the connection ends, then the channel is closed.
func drain(p *rawPeer) chan struct{} {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = io.Copy(io.Discard, p.conn)
	}()
	return ended
}
