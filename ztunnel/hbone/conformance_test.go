// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"encoding/binary"
	"strings"
	"testing"

	"golang.org/x/net/http2"
)

func raw(p *rawPeer, typ http2.FrameType, flags http2.Flags, id uint32, payload ...byte) {
	must(p.tb, p.WriteRawFrame(typ, flags, id, payload))
}

// TestServerEndsConnectionOn is RFC 9113: what a peer may not do to a connection, and the code it gets.
func TestServerEndsConnectionOn(t *testing.T) {
	tests := []struct {
		name string
		do   func(p *rawPeer)
		want ErrCode
	}{
		{"DATA on stream 0", func(p *rawPeer) { raw(p, http2.FrameData, 0, 0, 1) }, CodeProtocol},
		{"DATA on an idle stream", func(p *rawPeer) { raw(p, http2.FrameData, 0, 5, 1) }, CodeProtocol},
		{"DATA padded beyond its end", func(p *rawPeer) {
			p.connect(1)
			raw(p, http2.FrameData, http2.FlagDataPadded, 1, 200, 1, 2)
		}, CodeProtocol},
		{"HEADERS on an even stream", func(p *rawPeer) { p.connect(2) }, CodeProtocol},
		{"HEADERS on stream 0", func(p *rawPeer) { p.connect(0) }, CodeProtocol},
		{"HEADERS going back", func(p *rawPeer) { p.connect(5); p.connect(3) }, CodeStreamClosed},
		{"HEADERS that are no HPACK", func(p *rawPeer) {
			raw(p, http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
		}, CodeCompression},
		{"HEADERS padded beyond their end", func(p *rawPeer) {
			raw(p, http2.FrameHeaders, http2.FlagHeadersEndHeaders|http2.FlagHeadersPadded, 1, 9, 0)
		}, CodeProtocol},
		{"HEADERS too short for priority", func(p *rawPeer) {
			raw(p, http2.FrameHeaders, http2.FlagHeadersEndHeaders|http2.FlagHeadersPriority, 1, 0, 0)
		}, CodeFrameSize},
		{"CONTINUATION alone", func(p *rawPeer) { raw(p, http2.FrameContinuation, 0, 1) }, CodeProtocol},
		{"CONTINUATION of another stream", func(p *rawPeer) {
			raw(p, http2.FrameHeaders, 0, 1)
			raw(p, http2.FrameContinuation, 0, 3)
		}, CodeProtocol},
		{"PING inside a header block", func(p *rawPeer) {
			raw(p, http2.FrameHeaders, 0, 1)
			must(p.tb, p.WritePing(false, [8]byte{}))
		}, CodeProtocol},
		{"unknown frame inside a header block", func(p *rawPeer) {
			raw(p, http2.FrameHeaders, 0, 1)
			raw(p, 0xee, 0, 1)
		}, CodeProtocol},
		{"CONTINUATION without end", func(p *rawPeer) {
			raw(p, http2.FrameHeaders, 0, 1)
			for range maxContinuations + 2 {
				if p.WriteContinuation(1, false, nil) != nil {
					return
				}
			}
		}, CodeEnhanceYourCalm},
		{"CONTINUATION flood with bytes", func(p *rawPeer) {
			raw(p, http2.FrameHeaders, 0, 1)
			for range 20 {
				if p.WriteContinuation(1, false, make([]byte, 16<<10)) != nil {
					return
				}
			}
		}, CodeEnhanceYourCalm},
		{"SETTINGS on a stream", func(p *rawPeer) { raw(p, http2.FrameSettings, 0, 1) }, CodeProtocol},
		{"SETTINGS of odd size", func(p *rawPeer) { raw(p, http2.FrameSettings, 0, 0, 1, 2, 3) }, CodeFrameSize},
		{"SETTINGS acknowledgement with payload", func(p *rawPeer) {
			raw(p, http2.FrameSettings, http2.FlagSettingsAck, 0, 0, 4, 0, 0, 0, 0)
		}, CodeFrameSize},
		{"SETTINGS with a window too large", func(p *rawPeer) {
			must(p.tb, p.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 31}))
		}, CodeFlowControl},
		{"SETTINGS with a frame size too small", func(p *rawPeer) {
			must(p.tb, p.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 100}))
		}, CodeProtocol},
		{"SETTINGS with a frame size too large", func(p *rawPeer) {
			must(p.tb, p.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1 << 24}))
		}, CodeProtocol},
		{"SETTINGS with push 2", func(p *rawPeer) {
			must(p.tb, p.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 2}))
		}, CodeProtocol},
		{"SETTINGS that overflow a stream's window", func(p *rawPeer) {
			p.connect(1)
			must(p.tb, p.WriteWindowUpdate(1, 1<<31-1-defaultWindow))
			must(p.tb, p.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: defaultWindow + 1}))
		}, CodeFlowControl},
		{"PING on a stream", func(p *rawPeer) { raw(p, http2.FramePing, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0) }, CodeProtocol},
		{"PING of wrong size", func(p *rawPeer) { raw(p, http2.FramePing, 0, 0, 1) }, CodeFrameSize},
		{"GOAWAY on a stream", func(p *rawPeer) { raw(p, http2.FrameGoAway, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0) }, CodeProtocol},
		{"GOAWAY too short", func(p *rawPeer) { raw(p, http2.FrameGoAway, 0, 0, 0) }, CodeFrameSize},
		{"PRIORITY on stream 0", func(p *rawPeer) { raw(p, http2.FramePriority, 0, 0, 0, 0, 0, 0, 0) }, CodeProtocol},
		{"RST_STREAM on stream 0", func(p *rawPeer) { raw(p, http2.FrameRSTStream, 0, 0, 0, 0, 0, 0) }, CodeProtocol},
		{"RST_STREAM on an idle stream", func(p *rawPeer) { raw(p, http2.FrameRSTStream, 0, 7, 0, 0, 0, 0) }, CodeProtocol},
		{"RST_STREAM of wrong size", func(p *rawPeer) { p.connect(1); raw(p, http2.FrameRSTStream, 0, 1, 0) }, CodeFrameSize},
		{"WINDOW_UPDATE of 0 on the connection", func(p *rawPeer) { raw(p, http2.FrameWindowUpdate, 0, 0, 0, 0, 0, 0) }, CodeProtocol},
		{"WINDOW_UPDATE on an idle stream", func(p *rawPeer) { must(p.tb, p.WriteWindowUpdate(9, 1)) }, CodeProtocol},
		{"WINDOW_UPDATE of wrong size", func(p *rawPeer) { raw(p, http2.FrameWindowUpdate, 0, 0, 1) }, CodeFrameSize},
		{"window overflow on the connection", func(p *rawPeer) { must(p.tb, p.WriteWindowUpdate(0, 1<<31-1)) }, CodeFlowControl},
		{"PUSH_PROMISE", func(p *rawPeer) { raw(p, http2.FramePushPromise, 0, 1, 0, 0, 0, 2) }, CodeProtocol},
		{"a frame larger than advertised", func(p *rawPeer) {
			var h [9]byte
			frameHeader{length: ourMaxFrame + 1, typ: frameData, stream: 1}.put(h[:])
			_, _ = p.conn.Write(h[:])
		}, CodeFrameSize},
		{"PING flood", func(p *rawPeer) { flood(p, func() error { return p.WritePing(false, [8]byte{}) }) }, CodeEnhanceYourCalm},
		{"WINDOW_UPDATE flood", func(p *rawPeer) { flood(p, func() error { return p.WriteWindowUpdate(0, 1) }) }, CodeEnhanceYourCalm},
		{"SETTINGS flood", func(p *rawPeer) { flood(p, func() error { return p.WriteSettings() }) }, CodeEnhanceYourCalm},
		{"PRIORITY flood", func(p *rawPeer) {
			flood(p, func() error { return p.WriteRawFrame(http2.FramePriority, 0, 3, make([]byte, 5)) })
		}, CodeEnhanceYourCalm},
		{"empty DATA flood", func(p *rawPeer) {
			p.connect(1)
			flood(p, func() error { return p.WriteData(1, false, nil) })
		}, CodeEnhanceYourCalm},
		{"rapid reset", func(p *rawPeer) {
			id := ^uint32(0)
			flood(p, func() error {
				id += 2
				p.connect(id)
				return p.WriteRSTStream(id, http2.ErrCodeCancel)
			})
		}, CodeEnhanceYourCalm},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { wantEnd(t, newEnv(t, echo), tt.do, tt.want) })
	}
}

// wantEnd has a peer do what ends its connection with the code want, and checks that nothing is left of it.
func wantEnd(t *testing.T, e *env, do func(p *rawPeer), want ErrCode) {
	t.Helper()
	before := atRest(t, e)
	p := dialRaw(t, e)
	reader := &rawPeer{Framer: p.Framer, tb: t, conn: p.conn}
	wrote := quietly(t, p, func() { do(p) })
	reader.wantGoAway(want)
	<-wrote
	if err := e.srv.waitServeErr(t); !strings.Contains(err.Error(), want.String()) {
		t.Errorf("ServeConn: got %v, want %s", err, want)
	}
	before.again(t, e.srv.Stats)
}

// quiet is a TB for a writer whose connection the server may close at any time.
type quiet struct{ *testing.T }

const errQuiet = "write to a closed connection"

func (quiet) Fatal(...any) { panic(errQuiet) }

// flood writes until the server has had enough.
func flood(p *rawPeer, write func() error) {
	for range 3 * floodBudget {
		if write() != nil {
			return
		}
	}
}

// TestServerResetsStreamOn is RFC 9113: what ends one stream and no more.
func TestServerResetsStreamOn(t *testing.T) {
	connect := []string{":method", "CONNECT", ":authority", "a:1"}
	with := func(fields ...string) func(*rawPeer) {
		return func(p *rawPeer) { p.headers(1, false, fields...) }
	}
	tests := []struct {
		name string
		do   func(p *rawPeer)
		want ErrCode
	}{
		{"no method", with(":authority", "a:1"), CodeProtocol},
		{"no authority", with(":method", "CONNECT"), CodeProtocol},
		{"a scheme", with(append(connect, ":scheme", "https")...), CodeProtocol},
		{"a path", with(append(connect, ":path", "/")...), CodeProtocol},
		{"extended CONNECT", with(append(connect, ":protocol", "websocket")...), CodeProtocol},
		{"two authorities", with(append(connect, ":authority", "b:1")...), CodeProtocol},
		{"a status", with(append(connect, ":status", "200")...), CodeProtocol},
		{"a pseudo header after a header", with("a", "b", ":method", "CONNECT", ":authority", "a:1"), CodeProtocol},
		{"upper case", with(append(connect, "Baggage", "x")...), CodeProtocol},
		{"a space in a name", with(append(connect, "a b", "x")...), CodeProtocol},
		{"an empty name", with(append(connect, "", "x")...), CodeProtocol},
		{"a line break in a value", with(append(connect, "a", "x\r\ny: z")...), CodeProtocol},
		{"a blank before a value", with(append(connect, "a", " x")...), CodeProtocol},
		{"connection header", with(append(connect, "connection", "close")...), CodeProtocol},
		{"te", with(append(connect, "te", "gzip")...), CodeProtocol},
		{"DATA after END_STREAM", func(p *rawPeer) {
			p.headers(1, true, append(connect, "mode", "stall")...) // else our own end may close it before the DATA
			must(p.tb, p.WriteData(1, false, []byte("x")))
		}, CodeStreamClosed},
		{"HEADERS on an open stream", func(p *rawPeer) { p.headers(1, false, connect...); p.headers(1, true, connect...) }, CodeProtocol},
		{"WINDOW_UPDATE of 0", func(p *rawPeer) {
			p.headers(1, false, connect...)
			raw(p, http2.FrameWindowUpdate, 0, 1, 0, 0, 0, 0)
		}, CodeProtocol},
		{"window overflow", func(p *rawPeer) {
			p.headers(1, false, connect...)
			must(p.tb, p.WriteWindowUpdate(1, 1<<31-1))
		}, CodeFlowControl},
		{"PRIORITY of wrong size", func(p *rawPeer) { p.headers(1, false, connect...); raw(p, http2.FramePriority, 0, 1, 1) }, CodeFrameSize},
		{"more DATA than the window", func(p *rawPeer) {
			p.headers(1, false, append(connect, "mode", "stall")...)
			for range 5 {
				must(p.tb, p.WriteData(1, false, make([]byte, ourMaxFrame)))
			}
		}, CodeFlowControl},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := newEnv(t, stallable)
			p := dialRaw(t, e)
			tt.do(p)
			p.wantReset(1, tt.want)
			p.wantPong()
			p.connect(3)
			p.wantStatus(3, "200")
		})
	}
}

func TestServerAnswersWithStatus(t *testing.T) {
	big := strings.Repeat("x", 20<<10)
	tests := []struct {
		name, want string
		fields     []string
	}{
		{"GET", "400", []string{":method", "GET", ":scheme", "https", ":path", "/", ":authority", "a:1"}},
		{"header list above the limit", "431", []string{":method", "CONNECT", ":authority", "a:1", "a", big, "b", big, "c", big, "d", big}},
		{"authority that does not parse, by the handler", "400", []string{":method", "CONNECT", ":authority", "no port"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := newEnv(t, func(_ context.Context, r *ServerStream) {
				if _, _, _, err := ParseAuthority(r.Authority()); err != nil {
					_ = r.Reject(400)
				}
			})
			p := dialRaw(t, e)
			block := p.block(tt.fields...)
			for first := true; first || len(block) > 0; first = false {
				part := block[:min(len(block), 16<<10)]
				block = block[len(part):]
				if first {
					must(t, p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: part, EndHeaders: len(block) == 0}))
				} else {
					must(t, p.WriteContinuation(1, len(block) == 0, part))
				}
			}
			p.wantStatus(1, tt.want)
			p.wantReset(1, CodeNo)
			p.wantPong()
		})
	}
}

func TestServerAcceptsUnusualButValid(t *testing.T) {
	e := newEnv(t, echo)
	p := dialRaw(t, e)
	raw(p, 0xfa, 0xff, 1, 1, 2, 3) // unknown type
	must(t, p.WriteSettings(http2.Setting{ID: 0x99, Val: 7}))
	block := p.block(":method", "CONNECT", ":authority", "10.0.0.1:80")
	must(t, p.WriteHeaders(http2.HeadersFrameParam{
		StreamID: 1, BlockFragment: block[:3], PadLength: 9, Priority: http2.PriorityParam{StreamDep: 0, Weight: 3},
	}))
	must(t, p.WriteContinuation(1, false, block[3:7]))
	must(t, p.WriteContinuation(1, true, block[7:]))
	p.wantStatus(1, "200")
	must(t, p.WriteData(1, false, nil))
	must(t, p.WriteDataPadded(1, false, []byte("pad"), make([]byte, 40)))
	must(t, p.WriteDataPadded(1, true, []byte("ded"), nil))
	var got []byte
	p.next(func(f http2.Frame) bool {
		if d, ok := f.(*http2.DataFrame); ok {
			got = append(got, d.Data()...)
			return d.StreamEnded()
		}
		return false
	})
	if string(got) != "padded" {
		t.Errorf("echo: got %q, want padded", got)
	}
	must(t, p.WriteWindowUpdate(1, 5)) // of a closed stream: ignored
	must(t, p.WriteRSTStream(1, http2.ErrCodeCancel))
	p.wantPong()
}

func TestPaddingIsGivenBackToTheWindow(t *testing.T) {
	e := newEnv(t, echo)
	p := dialRaw(t, e)
	p.connect(1)
	// Padding alone, more than the connection's window.
	payload := make([]byte, 16<<10)
	payload[0] = 255
	credit, sent := int64(ourConnWindow), int64(0)
	streamCredit := int64(ourStreamWindow)
	for sent < ourConnWindow+ourConnWindow/8 {
		for credit < 256 || streamCredit < 256 {
			w := p.next(func(f http2.Frame) bool { return f.Header().Type == http2.FrameWindowUpdate }).(*http2.WindowUpdateFrame)
			if w.StreamID == 0 {
				if sent > 0 {
					credit += int64(w.Increment)
				}
			} else {
				streamCredit += int64(w.Increment)
			}
		}
		raw(p, http2.FrameData, http2.FlagDataPadded, 1, payload[:256]...)
		sent, credit, streamCredit = sent+256, credit-256, streamCredit-256
	}
	p.wantPong()
}

// TestAdvertisedSettings are the numbers that peers tune themselves by.
func TestAdvertisedSettings(t *testing.T) {
	want := func(t *testing.T, p *rawPeer, pairs map[http2.SettingID]uint32) {
		t.Helper()
		s := p.next(func(f http2.Frame) bool { return f.Header().Type == http2.FrameSettings }).(*http2.SettingsFrame)
		for id, v := range pairs {
			if got, ok := s.Value(id); !ok || got != v {
				t.Errorf("%v: got %d, want %d", id, got, v)
			}
		}
		w := p.next(func(f http2.Frame) bool { return f.Header().Type == http2.FrameWindowUpdate }).(*http2.WindowUpdateFrame)
		if got := w.Increment + defaultWindow; w.StreamID != 0 || got != 16<<20 {
			t.Errorf("connection window: got %d, want 16 MiB", got)
		}
	}
	t.Run("server", func(t *testing.T) {
		want(t, dialRaw(t, newEnv(t, echo)), map[http2.SettingID]uint32{
			http2.SettingMaxConcurrentStreams: 200, http2.SettingInitialWindowSize: 512 << 10,
			http2.SettingMaxFrameSize: 1 << 20, http2.SettingMaxHeaderListSize: 64 << 10,
		})
	})
	t.Run("client", func(t *testing.T) {
		rs := newRawServer(t)
		ctx, cancel := withCancel(t)
		res := rs.connectAsync(ctx)
		want(t, rs.accept(), map[http2.SettingID]uint32{
			http2.SettingEnablePush: 0, http2.SettingInitialWindowSize: 512 << 10,
			http2.SettingMaxFrameSize: 1 << 20, http2.SettingMaxHeaderListSize: 16 << 10,
		})
		cancel()
		<-res
	})
}

func TestFrameHeaderRoundTrip(t *testing.T) {
	for _, h := range []frameHeader{
		{}, {1<<24 - 1, 0xff, 0xff, maxStreamID}, {5, frameGoAway, 1, 0}, {16384, frameData, 9, 12345},
	} {
		var b [frameHeaderLen]byte
		h.put(b[:])
		if got := parseFrameHeader(&b); got != h {
			t.Errorf("got %+v, want %+v", got, h)
		}
		binary.BigEndian.PutUint32(b[5:], h.stream|1<<31) // reserved bit: ignored
		if got := parseFrameHeader(&b); got != h {
			t.Errorf("with reserved bit: got %+v, want %+v", got, h)
		}
	}
}

func TestSendFrameSizeFillsRecords(t *testing.T) {
	for _, tt := range []struct{ peer, want int }{
		{16 << 10, 16<<10 - 9}, {32 << 10, 32<<10 - 9}, {1<<15 - 9, 1<<15 - 9}, {100_000, 6*16384 - 9}, {1 << 20, maxSendFrame}, {1<<24 - 1, maxSendFrame},
	} {
		if got := sendFrameSize(tt.peer); got != tt.want || got > tt.peer {
			t.Errorf("peer %d: got %d, want %d", tt.peer, got, tt.want)
		}
	}
}
