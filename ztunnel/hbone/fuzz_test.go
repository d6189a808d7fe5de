// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	"golang.org/x/net/http2/hpack"
)

// scriptConn is a peer that says what it has to say and hangs up.
type scriptConn struct {
	net.Conn
	in io.Reader
}

func (c *scriptConn) Read(p []byte) (int, error)       { return c.in.Read(p) }
func (c *scriptConn) Write(p []byte) (int, error)      { return len(p), nil }
func (c *scriptConn) Close() error                     { return nil }
func (c *scriptConn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *scriptConn) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *scriptConn) SetDeadline(time.Time) error      { return nil }
func (c *scriptConn) SetReadDeadline(time.Time) error  { return nil }
func (c *scriptConn) SetWriteDeadline(time.Time) error { return nil }

// fuzzConfig has no keepalive: the script is over before the first PING.
func fuzzConfig(client bool) connConfig {
	return connConfig{client: client, maxStreams: 10, stats: new(counters)}
}

// frames builds a seed.
func frames(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func frame(typ frameType, flags uint8, stream uint32, payload []byte) []byte {
	return append(frameHeader{length: len(payload), typ: typ, flags: flags, stream: stream}.appendTo(nil), payload...)
}

func hpackBlock(fields ...string) []byte {
	var buf bytes.Buffer
	enc := hpack.NewEncoder(&buf)
	for i := 0; i < len(fields); i += 2 {
		_ = enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return buf.Bytes()
}

var seedFrames = [][]byte{
	appendPing(nil, 0, keepalivePing), appendPing(nil, flagAck, drainPing), appendReset(nil, 1, CodeCancel),
	appendWindowUpdate(nil, 0, 100), appendWindowUpdate(nil, 1, maxWindow), appendGoAway(nil, 1, CodeInternal, "why"),
	frame(frameData, flagEndStream, 1, []byte("data")), frame(frameData, flagPadded, 1, []byte{2, 'x', 0, 0}),
	frame(framePriority, 0, 1, make([]byte, 5)), frame(0xbb, 0, 1, make([]byte, 20)), frame(frameContinuation, flagEndHeaders, 1, nil),
	appendSettings(nil, uint32(settingInitialWindow), 0, uint32(settingMaxFrameSize), 1<<20, uint32(settingMaxStreams), 1),
}

func FuzzServerFrames(f *testing.F) {
	connect := hpackBlock(":method", "CONNECT", ":authority", "10.0.0.1:80", "baggage", "a=b")
	open := frames([]byte(clientPreface), appendSettings(nil), frame(frameHeaders, flagEndHeaders, 1, connect))
	f.Add(open)
	f.Add(frames([]byte(clientPreface), appendSettings(nil), frame(frameHeaders, 0, 1, connect[:5]), frame(frameContinuation, flagEndHeaders, 1, connect[5:])))
	for _, seed := range seedFrames {
		f.Add(frames(open, seed))
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		w := newWire(&scriptConn{in: bytes.NewReader(script)})
		c := newConn(w, w, fuzzConfig(false))
		srv := &Server{Logger: slog.New(slog.DiscardHandler), Handler: func(_ context.Context, r *ServerStream) {
			if s, err := r.Accept(nil); err == nil {
				_, _ = io.Copy(io.Discard, s)
			}
		}}
		c.handle = func(s *Stream, b *headerBlock) { srv.handle(t.Context(), s, b) }
		_ = c.run()
		c.handlers.Wait()
		if n := c.stats.streams.Load(); n != 0 {
			t.Fatalf("%d streams left", n)
		}
	})
}

func FuzzClientFrames(f *testing.F) {
	answer := frames(appendSettings(nil), frame(frameHeaders, flagEndHeaders, 1, hpackBlock(":status", "200", "baggage", "a=b")))
	f.Add(answer)
	f.Add(frames(appendSettings(nil), frame(frameHeaders, flagEndHeaders|flagEndStream, 1, hpackBlock(":status", "503"))))
	for _, seed := range seedFrames {
		f.Add(frames(answer, seed))
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		w := newWire(&scriptConn{in: bytes.NewReader(script)})
		c := newConn(w, w, fuzzConfig(true))
		s, err := c.open(ConnectRequest{Authority: "10.0.0.1:80"})
		if err != nil {
			t.Fatal(err)
		}
		_ = c.run()
		if _, err := s.await(t.Context()); err == nil {
			_, _ = io.Copy(io.Discard, s)
			_ = s.Close()
		}
		if n := c.stats.streams.Load(); n != 0 {
			t.Fatalf("%d streams left", n)
		}
	})
}

// FuzzHeaderBlocks: what the encoder writes the decoder reads, in frames of any size.
func FuzzHeaderBlocks(f *testing.F) {
	f.Add("10.0.0.1:80", "baggage", "k8s.namespace.name=demo", uint16(10))
	f.Add("a:1", "x", "", uint16(1))
	f.Fuzz(func(t *testing.T, authority, name, value string, size uint16) {
		headers := []Header{{name, value}, {"traceparent", "00-1-2-00"}}
		if checkHeaders(headers) != nil || badValue(authority) || authority == "" || len(name)+len(value)+len(authority) > 1000 {
			return
		}
		var e headerEncoder
		e.init()
		e.request(authority, headers)
		var d headerDecoder
		d.init(ourServerHeaderList)
		raw := e.frames(1, max(int(size), 50), false)
		for len(raw) > 0 {
			h := parseFrameHeader((*[frameHeaderLen]byte)(raw))
			if err := d.add(raw[frameHeaderLen : frameHeaderLen+h.length]); err != nil {
				t.Fatal(err)
			}
			raw = raw[frameHeaderLen+h.length:]
		}
		b, err := d.decode()
		if err != nil {
			t.Fatal(err)
		}
		status, malformed := b.checkRequest()
		if status != 0 || malformed != "" || b.authority != authority || len(b.fields) != 2 || b.fields[0] != headers[0] {
			t.Fatalf("got %+v, %d, %q", b, status, malformed)
		}
	})
}
