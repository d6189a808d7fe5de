// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

func TestClientConnectErrors(t *testing.T) {
	tests := []struct {
		name string
		do   func(p *rawPeer, id uint32)
		want string
	}{
		{"status 401", func(p *rawPeer, id uint32) { p.headers(id, true, ":status", "401") }, "peer answered 401"},
		{"status 503 without end", func(p *rawPeer, id uint32) { p.headers(id, false, ":status", "503") }, "peer answered 503"},
		{"status 204", func(p *rawPeer, id uint32) { p.headers(id, true, ":status", "204") }, "peer answered 204"},
		{"no status", func(p *rawPeer, id uint32) { p.headers(id, false, "a", "b") }, "PROTOCOL_ERROR: bad :status"},
		{"status that is no number", func(p *rawPeer, id uint32) { p.headers(id, false, ":status", "2x0") }, "PROTOCOL_ERROR: bad :status"},
		{"a method in the response", func(p *rawPeer, id uint32) { p.headers(id, false, ":status", "200", ":method", "GET") }, "PROTOCOL_ERROR"},
		{"status 100 with the end", func(p *rawPeer, id uint32) { p.headers(id, true, ":status", "100") }, "PROTOCOL_ERROR"},
		{"DATA before the response", func(p *rawPeer, id uint32) { must(p.tb, p.WriteData(id, false, []byte("x"))) }, "PROTOCOL_ERROR: DATA before"},
		{"header list too large", func(p *rawPeer, id uint32) {
			v := strings.Repeat("x", 3000)
			p.headers(id, false, ":status", "200", "a", v, "b", v, "c", v, "d", v, "e", v, "f", v)
		}, "header list too large"},
		{"reset", func(p *rawPeer, id uint32) { must(p.tb, p.WriteRSTStream(id, http2.ErrCodeInternal)) }, "stream reset by peer: INTERNAL_ERROR"},
		{"GOAWAY with an error", func(p *rawPeer, id uint32) {
			must(p.tb, p.WriteGoAway(id, http2.ErrCodeInternal, []byte("why\n")))
			_ = p.conn.Close()
		}, "connection error from peer: INTERNAL_ERROR: why?"},
		{"frame on an even stream", func(p *rawPeer, id uint32) { p.headers(2, false, ":status", "200") }, "PROTOCOL_ERROR: HEADERS on stream 2"},
		{"frame on a stream never opened", func(p *rawPeer, id uint32) { p.headers(id+2, false, ":status", "200") }, "PROTOCOL_ERROR: HEADERS on idle"},
		{"PUSH_PROMISE", func(p *rawPeer, id uint32) { raw(p, http2.FramePushPromise, 4, id, 0, 0, 0, 2) }, "PROTOCOL_ERROR: PUSH_PROMISE"},
		{"push enabled by the server", func(p *rawPeer, id uint32) {
			must(p.tb, p.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 1}))
		}, "ENABLE_PUSH"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			rs := newRawServer(t)
			res := rs.connectAsync(t.Context())
			p := rs.accept()
			tt.do(p, p.request())
			r := <-res
			if r.err == nil || !strings.Contains(r.err.Error(), tt.want) {
				t.Fatalf("got %v, want %q", r.err, tt.want)
			}
			var status *StatusError
			if errors.As(r.err, &status) != strings.HasPrefix(tt.want, "peer answered") {
				t.Errorf("got %T, want *StatusError for answers only", r.err)
			}
			if got := rs.dialCount(); got != 1 {
				t.Errorf("dialled %d times, want 1: only what was not processed is tried again", got)
			}
			eventually(t, func() bool { return rs.pool.Stats().Streams == 0 })
		})
	}
}

func TestClientSkipsInformationalResponses(t *testing.T) {
	rs := newRawServer(t)
	res := rs.connectAsync(t.Context())
	p := rs.accept()
	id := p.request()
	p.headers(id, false, ":status", "103", "a", "b")
	p.headers(id, false, ":status", "200", "c", "d")
	r := <-res
	must(t, r.err)
	if got := r.resp.Header("c"); got != "d" {
		t.Errorf("header c: got %q, want d", got)
	}
	_ = r.s.Close()
	p.wantReset(id, CodeCancel)
}

// answered returns a stream between the pool and a raw server.
func answered(t *testing.T, settings ...http2.Setting) (*Stream, *rawPeer, uint32) {
	t.Helper()
	rs := newRawServer(t)
	res := rs.connectAsync(t.Context())
	p := rs.accept(settings...)
	id := p.request()
	p.headers(id, false, ":status", "200")
	r := <-res
	must(t, r.err)
	return r.s, p, id
}

func TestResetMapping(t *testing.T) {
	for _, tt := range []struct {
		code http2.ErrCode
		read string // what Read gives after the data before it
	}{
		{http2.ErrCodeNo, "EOF"},
		{http2.ErrCodeCancel, "EOF"},
		{http2.ErrCodeStreamClosed, "stream reset by peer: STREAM_CLOSED"},
		{http2.ErrCodeConnect, "stream reset by peer: CONNECT_ERROR"},
		{http2.ErrCode(77), "stream reset by peer: 0x4d"},
	} {
		t.Run(tt.code.String(), func(t *testing.T) {
			s, p, id := answered(t)
			must(t, p.WriteData(id, false, []byte("before")))
			must(t, p.WriteRSTStream(id, tt.code))
			eventually(t, func() bool { return s.dead.Load() })
			got, err := io.ReadAll(s)
			if err == nil {
				err = io.EOF
			}
			if err.Error() != tt.read || string(got) != "before" {
				t.Errorf("read: got %q, %v, want \"before\", %s", got, err, tt.read)
			}
			_, err = s.Write([]byte("x"))
			wantStreamError(t, err, ErrCode(tt.code), true)
		})
	}
}

func TestZeroWindowHoldsTheSender(t *testing.T) {
	s, p, id := answered(t, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	wrote := make(chan error, 1)
	go func() {
		_, err := s.Write([]byte("0123456789"))
		wrote <- err
	}()
	p.wantPong() // nothing but the answer comes
	isData := func(f http2.Frame) bool { return f.Header().Type == http2.FrameData }
	var got []byte
	for _, n := range []uint32{1, 2, 7} {
		must(t, p.WriteWindowUpdate(id, n))
		d := p.next(isData).(*http2.DataFrame)
		if len(d.Data()) != int(n) {
			t.Fatalf("window of %d: got %d bytes", n, len(d.Data()))
		}
		got = append(got, d.Data()...)
	}
	must(t, <-wrote)
	if string(got) != "0123456789" {
		t.Errorf("got %q", got)
	}
}

func TestWindowShrunkBySettingsGoesNegative(t *testing.T) {
	s, p, id := answered(t)
	_, err := s.Write(make([]byte, 1000))
	must(t, err)
	must(t, p.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}))
	p.wantPong()
	s.mu.Lock()
	got := s.sendWindow
	s.mu.Unlock()
	if got != -1000 {
		t.Fatalf("window: got %d, want -1000", got)
	}
	wrote := make(chan error, 1)
	go func() {
		_, err := s.Write([]byte("x"))
		wrote <- err
	}()
	must(t, p.WriteWindowUpdate(id, 1001))
	must(t, <-wrote)
}

func TestCloseWriteSendsEmptyData(t *testing.T) {
	s, p, id := answered(t)
	must(t, s.CloseWrite())
	d := p.next(func(f http2.Frame) bool { return f.Header().Type == http2.FrameData }).(*http2.DataFrame)
	if !d.StreamEnded() || len(d.Data()) != 0 {
		t.Errorf("got %v, want an empty DATA with END_STREAM", d)
	}
	if _, err := s.Write([]byte("x")); err == nil {
		t.Error("write after CloseWrite succeeds")
	}
	must(t, p.WriteData(id, true, []byte("bye"))) // END_STREAM on the last DATA
	got, err := io.ReadAll(s)
	if err != nil || string(got) != "bye" {
		t.Errorf("got %q, %v, want bye", got, err)
	}
}

func TestLargeFramesOnlyToPeersThatAllowThem(t *testing.T) {
	for _, tt := range []struct{ peer, want int }{{16 << 10, 16<<10 - 9}, {1 << 20, maxSendFrame}} {
		s, p, _ := answered(t,
			http2.Setting{ID: http2.SettingMaxFrameSize, Val: uint32(tt.peer)},
			http2.Setting{ID: http2.SettingInitialWindowSize, Val: 4 << 20})
		must(t, p.WriteWindowUpdate(0, 4<<20))
		p.wantPong()
		go func() { _, _ = s.Write(make([]byte, 1<<20)) }()
		largest := 0
		for total := 0; total < 1<<20; {
			d := p.next(func(f http2.Frame) bool { return f.Header().Type == http2.FrameData }).(*http2.DataFrame)
			largest = max(largest, len(d.Data()))
			total += len(d.Data())
		}
		if largest != tt.want {
			t.Errorf("peer takes %d: largest frame %d, want %d", tt.peer, largest, tt.want)
		}
	}
}

func TestPingTimeout(t *testing.T) {
	short := func(s *Server, c *PoolConfig) {
		c.PingInterval, c.PingTimeout = 20*time.Millisecond, 100*time.Millisecond
		s.PingInterval, s.PingTimeout = 20*time.Millisecond, 100*time.Millisecond
	}
	t.Run("client", func(t *testing.T) {
		rs := newRawServer(t, short)
		res := rs.connectAsync(t.Context())
		p := rs.accept()
		p.headers(p.request(), false, ":status", "200") // and never an answer to a PING
		r := <-res
		must(t, r.err)
		if _, err := r.s.Read(make([]byte, 1)); !errors.Is(err, ErrPingTimeout) {
			t.Errorf("got %v, want ErrPingTimeout", err)
		}
	})
	t.Run("server", func(t *testing.T) {
		e := newEnv(t, echo, short)
		p := dialRaw(t, e)
		p.wantGoAway(CodeNo)
		if err := e.srv.waitServeErr(t); !errors.Is(err, ErrPingTimeout) {
			t.Errorf("got %v, want ErrPingTimeout", err)
		}
	})
	t.Run("peer that sends and does not answer", func(t *testing.T) {
		e := newEnv(t, echo, short)
		p := dialRaw(t, e)
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			for p.WriteWindowUpdate(0, 1) == nil {
				time.Sleep(10 * time.Millisecond) // well within the timeout
			}
		}()
		if err := e.srv.waitServeErr(t); !errors.Is(err, ErrPingTimeout) {
			t.Errorf("got %v, want ErrPingTimeout", err)
		}
		_ = p.conn.Close()
		<-sent
	})
	t.Run("answered in time", func(t *testing.T) {
		e := newEnv(t, echo, short)
		s := e.mustConnect(t)
		time.Sleep(400 * time.Millisecond) // several intervals and timeouts
		_, err := s.Write([]byte("alive"))
		must(t, err)
		_, err = io.ReadFull(s, make([]byte, 5))
		must(t, err)
	})
}

func TestConnectHonoursContext(t *testing.T) {
	rs := newRawServer(t)
	ctx, cancel := withCancel(t)
	res := rs.connectAsync(ctx)
	p := rs.accept()
	id := p.request()
	cancel()
	if r := <-res; !errors.Is(r.err, context.Canceled) {
		t.Errorf("got %v, want context canceled", r.err)
	}
	p.wantReset(id, CodeCancel)
}

func TestBadHeadersAreNotSent(t *testing.T) {
	e := newEnv(t, echo)
	for _, h := range []Header{{"", "x"}, {"Upper", "x"}, {"a", "b\r\nc: d"}, {"connection", "x"}, {":path", "/"}} {
		_, _, err := e.connect(t.Context(), h)
		wantStreamError(t, err, CodeInternal, false)
	}
	if got := e.pool.Stats().StreamsTotal; got != 0 {
		t.Errorf("%d streams opened, want 0", got)
	}
}
