// SPDX-License-Identifier: Apache-2.0

package nodeapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/sluice-mesh/sluice/internal/unixsock"
)

// Client asks the agent. The zero value with Socket set is ready; it may be shared.
type Client struct {
	// Socket is the path of the agent's socket.
	Socket string
}

// UnreachableError says that no agent answered, and why: the caller may go by what it last knew.
type UnreachableError struct {
	Socket string
	Reason string
	Err    error
}

func (e *UnreachableError) Error() string {
	return fmt.Sprintf("ask agent at %s: %s", e.Socket, e.Reason)
}

func (e *UnreachableError) Unwrap() error { return e.Err }

// Do sends req with fds and waits for the answer until ctx ends.
//
// A refusal by the agent is an *[Error]; everything that kept an answer from coming is an *[UnreachableError]. The
// returned descriptors are the caller's to close.
func (c Client) Do(ctx context.Context, req *Request, fds ...int) (*Response, []int, error) {
	req.Version = Version
	resp, got, err := c.exchange(ctx, req, fds)
	if err != nil {
		return nil, nil, c.unreachable(err)
	}
	if resp.Error != nil {
		CloseFDs(got)
		return nil, nil, resp.Error
	}
	return resp, got, nil
}

// Stream sends req and, after an answer that is no refusal, calls each with every packet that follows, until the agent
// closes the stream, each returns an error, which is returned, or ctx ends, which is no error.
func (c Client) Stream(ctx context.Context, req *Request, each func(json.RawMessage) error) error {
	req.Version = Version
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unixpacket", c.Socket)
	if err != nil {
		return c.unreachable(err)
	}
	uc := conn.(*net.UnixConn)
	defer func() { _ = uc.Close() }()
	defer context.AfterFunc(ctx, func() { _ = uc.SetDeadline(time.Unix(1, 0)) })()
	resp, fds, err := converse(uc, req, nil)
	if err != nil {
		return c.unreachable(err)
	}
	CloseFDs(fds)
	if resp.Error != nil {
		return resp.Error
	}
	for {
		var packet json.RawMessage
		fds, err := readMessage(uc, &packet)
		switch {
		case errors.Is(err, io.ErrUnexpectedEOF), ctx.Err() != nil:
			return nil
		case err != nil:
			return c.unreachable(err)
		}
		CloseFDs(fds)
		if err := each(packet); err != nil {
			return err
		}
	}
}

// errNotSent tells a question that could not be put from an answer that was none.
var errNotSent = errors.New("send request")

func (c Client) exchange(ctx context.Context, req *Request, fds []int) (*Response, []int, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unixpacket", c.Socket)
	if err != nil {
		return nil, nil, err
	}
	uc := conn.(*net.UnixConn)
	defer func() { _ = uc.Close() }()
	// Whatever ends ctx, deadline or cancel, unblocks the read below.
	defer context.AfterFunc(ctx, func() { _ = uc.SetDeadline(time.Unix(1, 0)) })()

	return converse(uc, req, fds)
}

// converse puts the question and reads the answer.
func converse(uc *net.UnixConn, req *Request, fds []int) (*Response, []int, error) {
	if err := writeMessage(uc, req, fds); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", errNotSent, err)
	}
	var resp Response
	got, err := readMessage(uc, &resp)
	if err != nil {
		return nil, nil, err
	}
	if resp.Version != Version {
		CloseFDs(got)
		return nil, nil, fmt.Errorf("%w: version %d, want %d", ErrGarbage, resp.Version, Version)
	}
	return &resp, got, nil
}

// unreachable turns a system error into words that name what is wrong with the socket.
func (c Client) unreachable(err error) *UnreachableError {
	reason := err.Error()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		reason = "no such socket; the agent has not been started on this node, or listens elsewhere"
	case errors.Is(err, fs.ErrPermission):
		reason = "permission denied; only root and the user that the agent runs as may ask it"
	case errors.Is(err, syscall.ECONNREFUSED):
		reason = "connection refused; the agent is not running"
		if st, serr := os.Lstat(c.Socket); serr == nil && st.Mode().Type() != os.ModeSocket {
			reason = "not a socket but a " + unixsock.Kind(st.Mode()) + "; remove it"
		}
	case errors.Is(err, syscall.EPROTOTYPE):
		reason = "a socket of another kind; agentSocket names some other program's socket"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		reason = "no answer in time; the agent hangs or is overloaded"
	case errors.Is(err, errNotSent):
	case errors.Is(err, syscall.EAGAIN):
		reason = "the queue is full; the agent hangs or is overloaded"
	case errors.Is(err, ErrGarbage), errors.Is(err, ErrTooLong):
		reason = "what answers there is not the agent: " + err.Error()
	}
	return &UnreachableError{Socket: c.Socket, Reason: reason, Err: err}
}
