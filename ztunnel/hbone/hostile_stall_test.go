// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// TestServerOutlivesStalls: peers that break no rule of HTTP/2 and do not go on. What they hold is bounded, the server ends
// them by itself or can be told to, and then nothing is left.
func TestServerOutlivesStalls(t *testing.T) {
	for _, tt := range []struct {
		name  string
		peers int
		do    func(tb testing.TB, e *env) net.Conn // what a peer does before it stalls
		most  uint64                               // what the peers together may hold, the test's ends of their connections included
		want  error                                // how ServeConn ends; nil: it does not, until it is cut
	}{
		{"no handshake", 50, func(tb testing.TB, e *env) net.Conn { return dialPlain(tb, e) }, 4 << 20, ErrTLS},
		{"half a ClientHello", 50, func(tb testing.TB, e *env) net.Conn { return sayHello(tb, e, 2) }, 4 << 20, ErrTLS},
		{"half a handshake", 50, func(tb testing.TB, e *env) net.Conn { return sayHello(tb, e, 1) }, 8 << 20, ErrTLS},
		{"no preface", 20, func(tb testing.TB, e *env) net.Conn { return dialRawQuiet(tb, e).conn }, 4 << 20, ErrPingTimeout},
		{"half a preface", 20, func(tb testing.TB, e *env) net.Conn {
			p := dialRawQuiet(tb, e)
			_, err := io.WriteString(p.conn, clientPreface[:10])
			must(tb, err)
			return p.conn
		}, 4 << 20, ErrPingTimeout},
		{"half a header block", 20, func(tb testing.TB, e *env) net.Conn {
			p := dialRaw(tb, e)
			raw(p, http2.FrameHeaders, 0, 1, bytes.Repeat([]byte{0x82}, 16<<10)...)
			return p.conn
		}, 8 << 20, ErrPingTimeout},
		{"half a frame", 20, func(tb testing.TB, e *env) net.Conn {
			p := dialRaw(tb, e)
			openStalled(p, 1)
			var h [frameHeaderLen]byte
			frameHeader{length: ourStreamWindow, typ: frameData, stream: 1}.put(h[:])
			_, err := p.conn.Write(append(h[:], make([]byte, 40<<10)...))
			must(tb, err)
			return p.conn
		}, 20 * (midBlock + 256<<10), ErrPingTimeout},
		{"slow data, a byte a frame", 1, func(tb testing.TB, e *env) net.Conn {
			p := dialRaw(tb, e)
			openStalled(p, 1)
			for range 50_000 {
				must(tb, p.WriteData(1, false, []byte{'x'}))
			}
			p.wantPong() // so the server has read all of it
			return p.conn
		}, 2 << 20, nil},
		{"streams without data", 1, func(tb testing.TB, e *env) net.Conn {
			p := dialRaw(tb, e)
			openStalled(p, ourMaxStreams)
			p.wantPong() // so the server has read all of it
			return p.conn
		}, 6 << 20, nil},
		{"windows never opened", 1, func(tb testing.TB, e *env) net.Conn {
			p := dialRaw(tb, e, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
			for id := uint32(1); id <= 2*20; id += 2 {
				p.connect(id) // an echo that cannot answer
				must(tb, p.WriteData(id, false, make([]byte, ourStreamWindow)))
			}
			p.wantPong() // so the server has read all of it
			return p.conn
		}, 20*(ourStreamWindow+2*midBlock) + 2<<20, nil},
		{"full windows, nobody reads", 1, func(tb testing.TB, e *env) net.Conn {
			p := dialRaw(tb, e)
			openStalled(p, 40)
			for id := uint32(1); id <= 2*40; id += 2 {
				must(tb, p.WriteData(id, false, make([]byte, ourStreamWindow)))
			}
			p.wantPong() // so the server has read all of it
			return p.conn
		}, 40*(ourStreamWindow+midBlock) + 2<<20, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := newEnv(t, stallable, stallLimits(tt.want))
			before := atRest(t, e)
			var conns []net.Conn
			for range tt.peers {
				conns = append(conns, tt.do(t, e))
			}
			before.holds(t, tt.most)
			if tt.want == nil {
				e.srv.Cut(func(tls.ConnectionState) error { return errCutByTest })
				tt.want = errCutByTest
			}
			for _, c := range conns {
				closedByServer(t, c)
			}
			eventually(t, func() bool { return len(e.srv.serveErrs()) == tt.peers })
			for _, err := range e.srv.serveErrs() {
				if !errors.Is(err, tt.want) {
					t.Errorf("ServeConn: got %v, want %v", err, tt.want)
				}
			}
			before.again(t, e.srv.Stats)
		})
	}
}

var errCutByTest = errors.New("cut by the test")

// stallLimits makes the server's patience short for rows that wait for its end.
func stallLimits(want error) option {
	return func(s *Server, _ *PoolConfig) {
		if want != nil {
			s.HandshakeTimeout = 500 * time.Millisecond
			s.PingInterval, s.PingTimeout = 300*time.Millisecond, 300*time.Millisecond
		}
	}
}

// sayHello sends a ClientHello, or the first part of it, and leaves it there.
func sayHello(tb testing.TB, e *env, part int) net.Conn {
	tb.Helper()
	near, far := net.Pipe()
	defer near.Close()
	go func() { _ = tls.Client(far, tlsConfig(e.clientTLS)).Handshake(); _ = far.Close() }()
	record := make([]byte, 5)
	_, err := io.ReadFull(near, record)
	must(tb, err)
	hello := make([]byte, int(record[3])<<8|int(record[4]))
	_, err = io.ReadFull(near, hello)
	must(tb, err)
	conn := dialPlain(tb, e)
	_, err = conn.Write(append(record, hello[:len(hello)/part]...))
	must(tb, err)
	return conn
}
