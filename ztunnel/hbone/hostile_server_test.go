// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"strings"
	"testing"

	"golang.org/x/net/http2"
)

// TestServerCutsFloods: streams and headers that cost work or memory and carry nothing. TestServerEndsConnectionOn has the
// floods of frames.
func TestServerCutsFloods(t *testing.T) {
	connect := []string{":method", "CONNECT", ":authority", "10.0.0.1:80"}
	for _, tt := range []struct {
		name string
		do   func(p *rawPeer)
	}{
		{"streams without data", func(p *rawPeer) { openStalled(p, floodBudget) }},
		{"rapid reset before the answer", func(p *rawPeer) {
			for id := uint32(1); ; id += 2 {
				p.headers(id, false, append(connect, "mode", "silent")...)
				must(p.tb, p.WriteRSTStream(id, http2.ErrCodeCancel))
			}
		}},
		{"streams that we must reset", func(p *rawPeer) {
			for id := uint32(1); ; id += 2 {
				p.headers(id, false, append(connect, "mode", "silent")...)
				must(p.tb, p.WriteWindowUpdate(id, 0))
			}
		}},
		{"malformed requests", func(p *rawPeer) {
			for id := uint32(1); ; id += 2 {
				p.headers(id, false, ":method", "CONNECT")
			}
		}},
		{"HPACK bomb", func(p *rawPeer) {
			for id := uint32(1); ; id += 2 {
				must(p.tb, p.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: bomb(p), EndHeaders: true}))
			}
		}},
		{"requests that are none", func(p *rawPeer) {
			for id := uint32(1); ; id += 2 {
				p.headers(id, true, ":method", "GET", ":scheme", "https", ":path", "/", ":authority", "a:1")
			}
		}},
		{"frames of unknown types", func(p *rawPeer) {
			flood(p, func() error { return p.WriteRawFrame(0xbb, 0, 0, nil) })
		}},
		{"PINGs nobody sent, answered", func(p *rawPeer) {
			flood(p, func() error { return p.WritePing(true, keepalivePing) })
		}},
		{"GOAWAY storm", func(p *rawPeer) {
			flood(p, func() error { return p.WriteGoAway(1, http2.ErrCodeNo, []byte("bye")) })
		}},
		{"resets of streams that are over", func(p *rawPeer) {
			p.headers(1, false, connect...)
			flood(p, func() error { return p.WriteRSTStream(1, http2.ErrCodeCancel) })
		}},
		{"SETTINGS that move all windows", func(p *rawPeer) {
			openStalled(p, ourMaxStreams)
			for range 3 * floodBudget / settingsCost / len(flips) { // each change costs, not each frame
				must(p.tb, p.WriteSettings(flips...))
			}
		}},
		{"one header of a megabyte", func(p *rawPeer) {
			must(p.tb, p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: make([]byte, ourMaxFrame)}))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) { wantEnd(t, newEnv(t, silenceable), tt.do, CodeEnhanceYourCalm) })
	}
}

// bomb is a header block of a few bytes that becomes more than any header list may be: one field of the dynamic table,
// named again and again.
func bomb(p *rawPeer) []byte {
	fields := []string{":method", "CONNECT", ":authority", "10.0.0.1:80"}
	value := strings.Repeat("x", 3000)
	for range 10 * ourServerHeaderList / len(value) {
		fields = append(fields, "bomb", value)
	}
	return p.block(fields...)
}

// flips are as many changes of the initial window as one SETTINGS frame may have.
var flips = func() (list []http2.Setting) {
	for i := range 64 {
		list = append(list, http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(i%2) * defaultWindow})
	}
	return list
}()
