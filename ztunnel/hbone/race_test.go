// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
)

// TestResetOvertakesAnEndThatIsNotQueued: CloseWrite waits for its turn to write and Reset comes first. The peer has to
// get one of END_STREAM and RST_STREAM.
func TestResetOvertakesAnEndThatIsNotQueued(t *testing.T) {
	rs := newRawServer(t)
	result := rs.connectAsync(t.Context())
	p := rs.accept()
	id := p.request()
	p.headers(id, false, ":status", "200")
	r := <-result
	must(t, r.err)
	must(t, p.WriteData(id, true, nil))
	s, w := r.s, &r.s.c.w
	eventually(t, func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.remoteEnd })

	w.lock.Lock()
	for queued := 0; queued <= midBlock; queued += frameHeaderLen + 8 {
		must(t, w.push(appendPing(nil, flagAck, [8]byte{})))
	}
	closed := make(chan error, 1)
	go func() { closed <- s.CloseWrite() }()
	eventually(t, func() bool { return w.waiting.Load() == 1 })
	s.Reset(CodeConnect)
	w.unlock(nil)
	p.wantReset(id, CodeConnect)
	wantStreamError(t, <-closed, CodeConnect, false)
}

// TestFullQueueEndsTheConnection: a header block that was encoded and not sent would leave the peer's HPACK state behind.
func TestFullQueueEndsTheConnection(t *testing.T) {
	s, _, _ := answered(t)
	c, w := s.c, &s.c.w
	w.lock.Lock()
	ping := appendPing(nil, flagAck, [8]byte{})
	w.qmu.Lock()
	for err := error(nil); err == nil && (w.queue == nil || w.queue.len()+len(ping) <= bigBlock); {
		err = w.pushLocked(ping)
	}
	w.qmu.Unlock()
	if _, err := c.open(ConnectRequest{Authority: "10.0.0.1:80"}); err == nil {
		t.Error("open with a full queue: got no error")
	}
	eventually(t, func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.err != nil })
	w.lock.Unlock()
	<-c.done
	if _, err := s.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), errQueueFull.Error()) {
		t.Errorf("got %v, want %v", err, errQueueFull)
	}
}

// deafConn is a connection whose writes wait for Close and no deadline, such as a Stream behind a blocked connection.
type deafConn struct {
	net.Conn
	closed chan struct{}
	deaf   chan struct{} // closed: no write gets through
	stuck  chan struct{} // one write waits
}

func (d *deafConn) Write(p []byte) (int, error) {
	select {
	case <-d.deaf:
	default:
		return d.Conn.Write(p)
	}
	select {
	case d.stuck <- struct{}{}:
	default:
	}
	<-d.closed
	return 0, net.ErrClosed
}

func (d *deafConn) Close() error {
	err := d.Conn.Close()
	if err == nil {
		close(d.closed)
	}
	return err
}

// TestPoolCloseWakesBlockedWriters: Close with a context that has ended cuts at once.
func TestPoolCloseWakesBlockedWriters(t *testing.T) {
	e := newEnv(t, echo)
	d := &deafConn{closed: make(chan struct{}), deaf: make(chan struct{}), stuck: make(chan struct{}, 1)}
	dial := func(ctx context.Context) (net.Conn, error) {
		conn, err := e.dial(ctx)
		d.Conn = conn
		return d, err
	}
	s, _, err := e.pool.Connect(t.Context(), e.key, dial, e.clientTLS, ConnectRequest{Authority: "10.0.0.1:80"})
	must(t, err)
	close(d.deaf)
	wrote := make(chan error, 1)
	go func() { _, err := s.ReadFrom(source64(1<<40, 1)); wrote <- err }()
	<-d.stuck
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := e.pool.Close(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("close: got %v, want context canceled", err)
	}
	if err := <-wrote; !errors.Is(err, ErrPoolClosed) {
		t.Errorf("write: got %v, want ErrPoolClosed", err)
	}
}
