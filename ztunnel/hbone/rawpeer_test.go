// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// rawPeer speaks HTTP/2 frame by frame, so that a test can say what no well-behaved peer would.
type rawPeer struct {
	*http2.Framer
	tb   testing.TB
	conn *tls.Conn
	enc  *hpack.Encoder
	buf  bytes.Buffer
}

func newRawPeer(tb testing.TB, conn *tls.Conn) *rawPeer {
	tb.Helper()
	must(tb, conn.SetDeadline(time.Now().Add(20*time.Second)))
	p := &rawPeer{tb: tb, conn: conn, Framer: http2.NewFramer(conn, conn)}
	p.Framer.AllowIllegalWrites = true
	p.Framer.SetMaxReadFrameSize(1 << 20)
	p.Framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	p.enc = hpack.NewEncoder(&p.buf)
	tb.Cleanup(func() { _ = conn.Close() })
	return p
}

// dialRaw connects a raw client and sends its preface.
func dialRaw(tb testing.TB, e *env, settings ...http2.Setting) *rawPeer {
	tb.Helper()
	p := dialRawQuiet(tb, e)
	_, err := io.WriteString(p.conn, clientPreface)
	must(tb, err)
	must(tb, p.WriteSettings(settings...))
	return p
}

func dialRawQuiet(tb testing.TB, e *env) *rawPeer {
	tb.Helper()
	conn, err := tls.Dial("tcp", e.key.Addr.String(), tlsConfig(e.clientTLS))
	must(tb, err)
	return newRawPeer(tb, conn)
}

// block encodes header fields given as name, value, name, value...
func (p *rawPeer) block(fields ...string) []byte {
	p.buf.Reset()
	for i := 0; i < len(fields); i += 2 {
		must(p.tb, p.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}))
	}
	return bytes.Clone(p.buf.Bytes())
}

func (p *rawPeer) headers(id uint32, end bool, fields ...string) {
	must(p.tb, p.WriteHeaders(http2.HeadersFrameParam{
		StreamID: id, BlockFragment: p.block(fields...), EndHeaders: true, EndStream: end,
	}))
}

func (p *rawPeer) connect(id uint32) {
	p.headers(id, false, ":method", "CONNECT", ":authority", "10.0.0.1:80")
}

// next returns the next frame that ok wants; frames it does not want are skipped.
func (p *rawPeer) next(ok func(http2.Frame) bool) http2.Frame {
	p.tb.Helper()
	for {
		f, err := p.ReadFrame()
		if err != nil {
			p.tb.Fatalf("read frame: %v", err)
		}
		if ok(f) {
			return f
		}
	}
}

func (p *rawPeer) wantStatus(id uint32, status string) {
	p.tb.Helper()
	f := p.next(func(f http2.Frame) bool {
		_, meta := f.(*http2.MetaHeadersFrame)
		return (meta || f.Header().Type == http2.FrameRSTStream) && f.Header().StreamID == id
	})
	m, ok := f.(*http2.MetaHeadersFrame)
	if !ok || m.PseudoValue("status") != status {
		p.tb.Fatalf("got %v, want status %s", f, status)
	}
}

func (p *rawPeer) wantReset(id uint32, code ErrCode) {
	p.tb.Helper()
	f := p.next(func(f http2.Frame) bool {
		t := f.Header().Type
		return t == http2.FrameGoAway || t == http2.FrameRSTStream && f.Header().StreamID == id
	})
	r, ok := f.(*http2.RSTStreamFrame)
	if !ok || ErrCode(r.ErrCode) != code {
		p.tb.Fatalf("got %v, want RST_STREAM %s", f, code)
	}
}

// wantGoAway also checks that the connection is closed after it.
func (p *rawPeer) wantGoAway(code ErrCode) {
	p.tb.Helper()
	g := p.next(func(f http2.Frame) bool { return f.Header().Type == http2.FrameGoAway }).(*http2.GoAwayFrame)
	if ErrCode(g.ErrCode) != code {
		p.tb.Fatalf("got GOAWAY %v (%s), want %s", g.ErrCode, g.DebugData(), code)
	}
	for {
		if _, err := p.ReadFrame(); err != nil {
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() {
				p.tb.Fatal("connection stays open after GOAWAY")
			}
			_ = p.conn.Close()
			return
		}
	}
}

// wantPong proves that the connection is alive.
func (p *rawPeer) wantPong() {
	p.tb.Helper()
	data := [8]byte{1, 2, 3}
	must(p.tb, p.WritePing(false, data))
	f := p.next(func(f http2.Frame) bool {
		t := f.Header().Type
		return t == http2.FrameGoAway || t == http2.FramePing && f.Header().Flags.Has(http2.FlagPingAck)
	})
	if pf, ok := f.(*http2.PingFrame); !ok || pf.Data != data {
		p.tb.Fatalf("got %v, want the PING's answer", f)
	}
}

// rawServer accepts TLS connections for tests of the client end.
type rawServer struct {
	tb testing.TB
	ln net.Listener
	*env
}

// newRawServer returns an env whose server is played by the test.
func newRawServer(tb testing.TB, opts ...option) *rawServer {
	tb.Helper()
	e := newEnv(tb, echo, opts...)
	ln, err := tls.Listen("tcp", "127.0.0.1:0", tlsConfig(e.ca.server(tb)))
	must(tb, err)
	tb.Cleanup(func() { _ = ln.Close() })
	e.key.Addr = netip.MustParseAddrPort(ln.Addr().String())
	return &rawServer{tb: tb, ln: ln, env: e}
}

// accept returns the next connection, its preface read and SETTINGS sent.
func (rs *rawServer) accept(settings ...http2.Setting) *rawPeer {
	rs.tb.Helper()
	conn, err := rs.ln.Accept()
	must(rs.tb, err)
	p := newRawPeer(rs.tb, conn.(*tls.Conn))
	preface := make([]byte, len(clientPreface))
	_, err = io.ReadFull(conn, preface)
	must(rs.tb, err)
	if string(preface) != clientPreface {
		rs.tb.Fatalf("preface: got %q", preface)
	}
	must(rs.tb, p.WriteSettings(settings...))
	return p
}

// request waits for the next CONNECT and returns its stream.
func (p *rawPeer) request() uint32 {
	p.tb.Helper()
	return p.next(func(f http2.Frame) bool { return f.Header().Type == http2.FrameHeaders }).Header().StreamID
}

type connectResult struct {
	s    *Stream
	resp *ConnectResponse
	err  error
}

// connectAsync runs Connect beside the test, which plays the server.
func (e *env) connectAsync(ctx context.Context) chan connectResult {
	ch := make(chan connectResult, 1)
	go func() {
		s, resp, err := e.connect(ctx)
		ch <- connectResult{s, resp, err}
	}()
	return ch
}
