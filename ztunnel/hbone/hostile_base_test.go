// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// restMargin is what memory may differ by at rest: pools, stacks of goroutines that have ended, the test's own.
const restMargin = 2 << 20

// rest is what a test's process holds while nothing goes on.
type rest struct {
	memory     uint64
	goroutines int
}

// atRest uses the server of e once, so that what the first connection costs for good is paid, and measures.
func atRest(tb testing.TB, e *env) rest {
	tb.Helper()
	p := dialRaw(tb, e)
	p.connect(1)
	p.wantStatus(1, "200")
	must(tb, p.WriteRSTStream(1, 0))
	must(tb, p.WriteGoAway(0, 0, nil))
	must(tb, p.conn.CloseWrite())
	_, _ = io.Copy(io.Discard, p.conn)
	must(tb, p.conn.Close())
	eventually(tb, func() bool { return len(e.srv.serveErrs()) == 1 })
	e.srv.mu.Lock()
	e.srv.errs = nil // the next is the attack's
	e.srv.mu.Unlock()
	return measure()
}

func measure() rest { return rest{inUse(), len(ourGoroutines())} }

// again fails the test unless what was built up since r was measured has been given back: memory, goroutines, connections
// and streams. The attacker's own connections must be closed.
func (r rest) again(tb testing.TB, stats func() Stats) {
	tb.Helper()
	testutil.Eventually(tb, 20*time.Second, func() error {
		now, open := measure(), stats()
		if open.Streams > 0 || open.Conns > 0 || now.goroutines > r.goroutines || now.memory > r.memory+restMargin {
			return fmt.Errorf("%d streams on %d connections, %d bytes and %d goroutines, want none, at most %d and %d",
				open.Streams, open.Conns, now.memory, now.goroutines, r.memory+restMargin, r.goroutines)
		}
		return nil
	})
}

// holds fails the test if much more memory is in use than when r was measured.
func (r rest) holds(tb testing.TB, most uint64) {
	tb.Helper()
	if now := inUse(); now > r.memory+most {
		tb.Errorf("the attack holds %d bytes, want at most %d", now-r.memory, most)
	}
}

// openStalled opens streams that the server's handler, stallable, neither reads nor writes.
func openStalled(p *rawPeer, n int) {
	for i := range n {
		p.headers(uint32(2*i+1), false, ":method", "CONNECT", ":authority", "10.0.0.1:80", "mode", "stall")
	}
}

// dialPlain is a client that has not begun its handshake.
func dialPlain(tb testing.TB, e *env) net.Conn {
	tb.Helper()
	conn, err := net.Dial("tcp", e.key.Addr.String())
	must(tb, err)
	must(tb, conn.SetDeadline(time.Now().Add(20*time.Second)))
	tb.Cleanup(func() { _ = conn.Close() })
	return conn
}

// closedByServer waits until the server has ended conn.
func closedByServer(tb testing.TB, conn net.Conn) {
	tb.Helper()
	if _, err := io.Copy(io.Discard, conn); isTimeout(err) {
		tb.Error("the server leaves the connection open")
	}
	_ = conn.Close()
}

// silenceable is stallable, but does not even answer when the header mode says "silent".
func silenceable(ctx context.Context, r *ServerStream) {
	if r.Header("mode") == "silent" {
		<-ctx.Done()
		return
	}
	stallable(ctx, r)
}

// quietly has the peer do what may end its connection at any time. The channel is closed when it has stopped.
func quietly(t *testing.T, p *rawPeer, do func()) chan struct{} {
	p.tb = quiet{t}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		defer func() {
			if r := recover(); r != nil && r != errQuiet {
				panic(r)
			}
		}()
		do()
	}()
	return stopped
}
