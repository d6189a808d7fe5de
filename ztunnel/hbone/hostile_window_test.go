// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/net/http2"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// TestClosedWindowsHoldNoBlocks: streams that waited for their applications with open windows, which the peer then closed,
// leave what comes in the applications' sockets; and send it once a window opens.
func TestClosedWindowsHoldNoBlocks(t *testing.T) {
	const streams, size, least = 60, 1000, 1 << 20
	for name, closeIt := range map[string]func(*rawPeer, *net.TCPConn) (open func()){
		"of the streams": func(p *rawPeer, _ *net.TCPConn) func() {
			must(p.tb, p.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}))
			return func() {
				must(p.tb, p.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: defaultWindow}))
			}
		},
		"of the connection": func(p *rawPeer, app *net.TCPConn) func() {
			p.fillWindow(1, app, defaultWindow-streams) // a byte of each has gone
			return func() { must(p.tb, p.WriteWindowUpdate(0, least)) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			var apps []*net.TCPConn
			e, handed := spliced(t, streams)
			p := dialRaw(t, e)
			for id := uint32(1); id <= 2*streams; id += 2 {
				apps = append(apps, p.app(id, handed))
				_, err := apps[len(apps)-1].Write([]byte{1})
				must(t, err)
				p.wantData(id, 1)
			}
			open := closeIt(p, apps[0])
			p.wantPong()
			before := measure()
			for _, app := range apps {
				_, err := app.Write(make([]byte, size))
				must(t, err)
			}
			testutil.Eventually(t, 20*time.Second, func() error {
				waiting := 0
				for _, g := range ourGoroutines() {
					if strings.Contains(g, "sync.(*Cond).Wait") && strings.Contains(g, "(*splice).up(") {
						waiting++
					}
				}
				if waiting != streams {
					return fmt.Errorf("%d of %d streams wait for window", waiting, streams)
				}
				return nil
			})
			before.holds(t, least)
			open()
			for id := uint32(1); id <= 2*streams; id += 2 {
				must(t, apps[id/2].CloseWrite())
			}
			got := map[uint32]int{}
			for ended := 0; ended < streams; {
				f := p.next(func(f http2.Frame) bool { return f.Header().Type == http2.FrameData })
				got[f.Header().StreamID] += len(f.(*http2.DataFrame).Data())
				if f.(*http2.DataFrame).StreamEnded() {
					ended++
				}
			}
			for id := uint32(1); id <= 2*streams; id += 2 {
				if got[id] != size {
					t.Errorf("stream %d: got %d bytes, want %d", id, got[id], size)
				}
			}
		})
	}
}

// spliced is a server that splices up to n streams, each to an application whose connection it hands out.
func spliced(tb testing.TB, n int) (*env, <-chan *net.TCPConn) {
	handed := make(chan *net.TCPConn, n)
	return newEnv(tb, func(_ context.Context, r *ServerStream) {
		near, app := tcpPair(tb)
		if s, err := r.Accept(nil); err == nil {
			handed <- app
			_ = Splice(near, s, nil, nil)
		}
	}), handed
}

// app opens a stream and returns the application behind it.
func (p *rawPeer) app(id uint32, handed <-chan *net.TCPConn) *net.TCPConn {
	p.tb.Helper()
	p.connect(id)
	p.wantStatus(id, "200")
	return <-handed
}

// TestEndsNeedNoWindow: an application that goes is told of while the connection's window is closed.
func TestEndsNeedNoWindow(t *testing.T) {
	for name, leave := range map[string]func(*net.TCPConn) error{
		"FIN": func(app *net.TCPConn) error { return app.CloseWrite() },
		"RST": func(app *net.TCPConn) error { return errors.Join(app.SetLinger(0), app.Close()) },
	} {
		t.Run(name, func(t *testing.T) {
			e, handed := spliced(t, 2)
			p := dialRaw(t, e)
			busy, idle := p.app(1, handed), p.app(3, handed)
			p.fillWindow(1, busy, defaultWindow)
			must(t, leave(idle))
			f := p.next(func(f http2.Frame) bool { return f.Header().StreamID == 3 })
			switch f := f.(type) {
			case *http2.DataFrame:
				if name != "FIN" || !f.StreamEnded() {
					t.Errorf("got %v", f)
				}
			case *http2.RSTStreamFrame:
				if name != "RST" || ErrCode(f.ErrCode) != CodeConnect {
					t.Errorf("got %v", f)
				}
			default:
				t.Errorf("got %v", f)
			}
		})
	}
}

// TestPeerThatTakesNothingHoldsFewBlocks: with all windows open and a connection that takes no more, most streams leave what
// comes in the applications' sockets.
func TestPeerThatTakesNothingHoldsFewBlocks(t *testing.T) {
	const streams, size = 80, smallFrame + 1000
	e, handed := spliced(t, streams+1)
	p := dialRaw(t, e, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
	must(t, p.WriteWindowUpdate(0, 1<<30))
	busy := p.app(1, handed)
	var apps []*net.TCPConn
	for id := uint32(3); id <= 2*streams+1; id += 2 {
		apps = append(apps, p.app(id, handed))
	}
	before := measure()
	var written atomic.Int64
	go func() {
		for b := make([]byte, bulkBlock); ; {
			n, err := busy.Write(b)
			written.Add(int64(n))
			if err != nil {
				return
			}
		}
	}()
	stuck := func(what string) int {
		n := 0
		for _, g := range ourGoroutines() {
			if strings.Contains(g, what) && strings.Contains(g, "(*splice).up(") {
				n++
			}
		}
		return n
	}
	var last int64
	same := 0
	eventually(t, func() bool { // a hundred looks: buffers that grow may let it go on for a while
		if n := written.Load(); n != last || stuck("(*writer).write(") != 1 {
			last, same = n, 0
		}
		same++
		return same > 100
	})
	for _, app := range apps {
		_, err := app.Write(make([]byte, size))
		must(t, err)
	}
	eventually(t, func() bool { return stuck("(*writer).write(")+stuck("(*sendWindow).take(") == streams+1 })
	if n := stuck("(*writer).write("); n > maxUnsent {
		t.Errorf("%d streams wait for the connection with a block, want at most %d", n, maxUnsent)
	}
	before.holds(t, (maxUnsent+4)*bigBlock)
	_ = p.conn.Close()
}

// wantData waits for n bytes of a stream.
func (p *rawPeer) wantData(id uint32, n int) {
	p.tb.Helper()
	for n > 0 {
		f := p.next(func(f http2.Frame) bool { return f.Header().Type == http2.FrameData && f.Header().StreamID == id })
		n -= len(f.(*http2.DataFrame).Data())
	}
}

// fillWindow has an application send n bytes, and takes them without saying so, but of the stream.
func (p *rawPeer) fillWindow(id uint32, app *net.TCPConn, n int) {
	p.tb.Helper()
	must(p.tb, p.WriteWindowUpdate(id, uint32(n)))
	_, err := app.Write(make([]byte, n))
	must(p.tb, err)
	p.wantData(id, n)
}

// TestSmallUpdatesOfAnHonestPeerAreNoFlood: once a window is used up, stock peers give back what their application takes,
// however little that is.
func TestSmallUpdatesOfAnHonestPeerAreNoFlood(t *testing.T) {
	e := newEnv(t, func(_ context.Context, r *ServerStream) {
		if s, err := r.Accept(nil); err == nil {
			_, _ = s.ReadFrom(source64(1<<40, 1))
		}
	})
	p := dialRaw(t, e)
	p.connect(1)
	p.wantData(1, defaultWindow)
	const read = 10
	for range floodBudget * 3 / 4 { // two updates each, so more than a flood has
		must(t, p.WriteWindowUpdate(0, read))
		must(t, p.WriteWindowUpdate(1, read))
		p.wantData(1, read)
	}
	p.wantPong()
}

// TestUpdatesPaidLongAgoAreAFlood: what many DATA frames have paid for is not kept for ever.
func TestUpdatesPaidLongAgoAreAFlood(t *testing.T) {
	const frames = 3 * floodBudget
	e := newEnv(t, func(_ context.Context, r *ServerStream) {
		if s, err := r.Accept(nil); err == nil {
			_, _ = s.ReadFrom(iotest.OneByteReader(source64(frames, 1)))
		}
	})
	p := dialRaw(t, e)
	p.connect(1)
	p.wantData(1, frames)
	for range 4 * floodBudget {
		if p.WriteWindowUpdate(0, 1) != nil {
			break
		}
	}
	p.wantGoAway(CodeEnhanceYourCalm)
}
