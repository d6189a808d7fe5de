// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
)

// TestCleanEndLeavesTheHandlerToFinish: both directions have ended on the wire, the connection too, and the application
// has not yet read. A handler that resets the stream when its context ends must not be told to.
func TestCleanEndLeavesTheHandlerToFinish(t *testing.T) {
	far, app := tcpPair(t)
	result := make(chan error, 1)
	e := newEnv(t, func(ctx context.Context, r *ServerStream) {
		s, err := r.Accept(nil)
		if err != nil {
			return
		}
		stop := context.AfterFunc(ctx, func() { s.Reset(CodeConnect) })
		defer stop()
		err = Splice(far, s, nil, nil)
		result <- errors.Join(err, ctx.Err())
	}, func(_ *Server, c *PoolConfig) { c.MaxStreams = 1 })
	must(t, app.CloseWrite())
	s := e.mustConnect(t)
	const size = ourStreamWindow * 3 / 4 // less than a window: all of it leaves before anybody reads
	_, err := s.ReadFrom(source64(size, 3))
	must(t, err)
	must(t, s.CloseWrite())
	if _, err := s.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("got %v, want EOF", err)
	}
	<-s.c.done // a limit of one stream: the connection closes with it
	if got, want := digest(t, app), digest(t, source64(size, 3)); got != want {
		t.Error("digests differ")
	}
	must(t, <-result)
}

// TestBreakEndsAWriteThatNobodyReads: Splice must not wait for an application that does not read once the stream is gone.
func TestBreakEndsAWriteThatNobodyReads(t *testing.T) {
	for name, end := range map[string]func(*env, *Stream, func()){
		"reset here":      func(_ *env, s *Stream, _ func()) { s.Reset(CodeConnect) },
		"connection lost": func(e *env, _ *Stream, _ func()) { e.srv.cancel() },
		"reset by peer":   func(_ *env, _ *Stream, reset func()) { reset() },
	} {
		t.Run(name, func(t *testing.T) {
			gone := make(chan struct{})
			reset := sync.OnceFunc(func() { close(gone) })
			defer reset()
			e := newEnv(t, func(_ context.Context, r *ServerStream) {
				if s, err := r.Accept(nil); err == nil {
					go func() { <-gone; s.Reset(CodeConnect) }()
					_, _ = s.ReadFrom(source64(1<<40, 1))
				}
			})
			near, app := tcpPair(t)
			s := e.mustConnect(t)
			result := make(chan error, 1)
			go func() { result <- Splice(near, s, nil, nil) }()
			// The window is used up: the kernel's buffers are full and Splice waits in a write.
			eventually(t, func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.recv.credit == 0 })
			end(e, s, reset)
			if err := <-result; err == nil || isTimeout(err) {
				t.Errorf("got %v, want why the stream ended", err)
			}
			if _, err := io.Copy(io.Discard, app); !isReset(err) {
				t.Errorf("application: got %v, want connection reset", err)
			}
		})
	}
}

func TestSpliceOfABrokenStream(t *testing.T) {
	e := newEnv(t, stallable)
	near, app := tcpPair(t)
	s := e.mustConnect(t)
	s.Reset(CodeConnect)
	wantStreamError(t, Splice(near, s, nil, nil), CodeConnect, false)
	if _, err := app.Read(make([]byte, 1)); !isReset(err) {
		t.Errorf("application: got %v, want connection reset", err)
	}
}

// TestAppThatVanishes: a write to an application that has closed resets the stream instead of swallowing its data.
func TestAppThatVanishes(t *testing.T) {
	done := make(chan error, 1)
	e := newEnv(t, func(_ context.Context, r *ServerStream) {
		if s, err := r.Accept(nil); err == nil {
			_, err := s.ReadFrom(source64(1<<40, 1))
			done <- err
		}
	})
	near, app := tcpPair(t)
	s := e.mustConnect(t)
	go func() { _ = Splice(near, s, nil, nil) }()
	_, err := io.ReadFull(app, make([]byte, 1000))
	must(t, err)
	must(t, app.Close())
	wantStreamError(t, <-done, CodeConnect, true)
}

// TestSpliceTellsWhyItResetTheStream: the connection's own fault, as a timeout is, and not the reset that followed from it.
func TestSpliceTellsWhyItResetTheStream(t *testing.T) {
	e := newEnv(t, stallable)
	near, _ := tcpPair(t)
	s := e.mustConnect(t)
	must(t, near.SetReadDeadline(longAgo))
	if err := Splice(near, s, nil, nil); !isTimeout(err) {
		t.Errorf("got %v, want a timeout", err)
	}
}

// TestCloseFromOutsideEndsSplice is what a policy change does.
func TestCloseFromOutsideEndsSplice(t *testing.T) {
	for name, end := range map[string]func(*net.TCPConn, *Stream){
		"reset the stream": func(_ *net.TCPConn, s *Stream) { s.Reset(CodeCancel) },
		"close the socket": func(c *net.TCPConn, _ *Stream) { _ = c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t, echo)
			near, _ := tcpPair(t)
			s := e.mustConnect(t)
			result := make(chan error, 1)
			go func() { result <- Splice(near, s, nil, nil) }()
			end(near, s)
			if err := <-result; err == nil {
				t.Error("got nil, want why it ended")
			}
			eventually(t, func() bool { return e.srv.Stats().Streams == 0 })
		})
	}
}
