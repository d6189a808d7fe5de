// SPDX-License-Identifier: Apache-2.0

package nodeapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
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
}

// Server is the agent's end.
type Server struct {
	handler Handler
	log     *slog.Logger
	ln      *net.UnixListener
	slots   chan struct{}
	wg      sync.WaitGroup
}

// Listen binds path, mode 0600, replacing a stale socket; anything else at path is an error that names it.
func Listen(path string, h Handler, log *slog.Logger) (*Server, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("listen node api: %w", err)
	}
	if st, err := os.Lstat(path); err == nil {
		if st.Mode().Type() != os.ModeSocket {
			return nil, fmt.Errorf("listen node api: %q is a %s, not a socket; remove it", path, kindOf(st.Mode()))
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("listen node api: %w", err)
		}
	}
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("listen node api: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = ln.Close()
		return nil, fmt.Errorf("listen node api: %w", err)
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
	if err := checkPeer(c); err != nil {
		s.reply(c, Answer{}, Errorf(CodeBadRequest, "%w", err))
		return
	}
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

// checkPeer lets in root and the agent's own user. The socket's mode says the same; this also holds when a volume was
// mounted where the mode does not count.
func checkPeer(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return err
	}
	if cerr != nil {
		return fmt.Errorf("read peer credentials: %w", cerr)
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("uid %d may not use the node API", cred.Uid)
	}
	return nil
}
