// SPDX-License-Identifier: Apache-2.0

package nodeapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/unixsock"
)

const (
	// requestTimeout bounds how long a caller may take to send its one packet.
	requestTimeout = 5 * time.Second
	// maxCalls bounds the calls in progress; further callers wait in the listen queue.
	maxCalls = 512
)

// Handler answers calls. It is called from many goroutines at once.
//
// fds came with the request and stay owned by the server, which closes them after the answer: a handler that keeps one
// duplicates it. The descriptors of the Answer are sent and, if CloseAfter is set, closed afterwards. ctx ends when the
// server is closed.
type Handler interface {
	Handle(ctx context.Context, req *Request, fds []int) (Answer, *Error)
}

// Answer is what a Handler returns.
type Answer struct {
	Response
	FDs        []int
	CloseAfter bool
	// Stream, when set, is called after the answer has been sent, with a function that sends one more packet. Its ctx
	// ends when the caller has closed the connection, too.
	Stream func(ctx context.Context, send func(any) error) error
}

// Server is the agent's end.
type Server struct {
	handler Handler
	log     *slog.Logger
	ln      *unixsock.Listener
	slots   chan struct{}
	wg      sync.WaitGroup
}

// Listen binds path, mode 0600, for root and the agent's own user, replacing a stale socket; anything else at path is an
// error that names it.
func Listen(path string, h Handler, log *slog.Logger) (*Server, error) {
	ln, err := unixsock.Listen("unixpacket", path, log)
	if err != nil {
		return nil, fmt.Errorf("node api: %w", err)
	}
	return &Server{handler: h, log: log, ln: ln, slots: make(chan struct{}, maxCalls)}, nil
}

// Serve answers callers until ctx ends, then waits for the calls in progress and removes the socket.
func (s *Server) Serve(ctx context.Context) error {
	defer s.wg.Wait()
	// Also here: when ctx ends between two accepts, the function below may never get to run.
	defer func() { _ = s.ln.Close() }()
	defer context.AfterFunc(ctx, func() { _ = s.ln.Close() })()
	for {
		select {
		case s.slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		c, err := s.ln.AcceptUnix()
		if err != nil {
			<-s.slots
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			// Out of descriptors, most likely: the next accept may fare better, but must not spin.
			s.log.Error("accept node api", "err", err)
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		s.wg.Go(func() {
			defer func() { <-s.slots }()
			s.call(ctx, c)
		})
	}
}

// call serves one connection: one question, one answer.
func (s *Server) call(ctx context.Context, c *net.UnixConn) {
	defer func() { _ = c.Close() }()
	_ = c.SetReadDeadline(time.Now().Add(requestTimeout))
	var req Request
	fds, err := readMessage(c, &req)
	if err != nil {
		s.reply(c, Answer{}, Errorf(CodeBadRequest, "read request: %w", err))
		return
	}
	defer CloseFDs(fds)
	if e := req.validate(); e != nil {
		s.reply(c, Answer{}, e)
		return
	}
	answer, refusal := s.handler.Handle(ctx, &req, fds)
	s.reply(c, answer, refusal)
	if answer.Stream != nil && refusal == nil {
		s.stream(ctx, c, answer.Stream)
	}
}

// stream goes on until the handler is done, or the caller has closed its end or reads nothing for long.
func (s *Server) stream(ctx context.Context, c *net.UnixConn, feed func(context.Context, func(any) error) error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	_ = c.SetReadDeadline(time.Time{})
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		defer cancel()
		_, _ = c.Read(make([]byte, 1)) // nothing more is to come: this returns when the connection ends
	}()
	err := feed(ctx, func(v any) error {
		_ = c.SetWriteDeadline(time.Now().Add(requestTimeout))
		return writeMessage(c, v, nil)
	})
	if err != nil && ctx.Err() == nil && !errors.Is(err, unix.EPIPE) {
		s.log.Warn("stream node api", "err", err)
	}
	_ = c.Close()
	<-gone
}

func (s *Server) reply(c *net.UnixConn, a Answer, refusal *Error) {
	if a.CloseAfter {
		defer CloseFDs(a.FDs)
	}
	a.Response.Version, a.Response.Error = Version, refusal
	_ = c.SetWriteDeadline(time.Now().Add(requestTimeout))
	if err := writeMessage(c, &a.Response, a.FDs); err != nil && !errors.Is(err, unix.EPIPE) {
		s.log.Warn("answer node api", "err", err)
	}
}
