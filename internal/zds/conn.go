// SPDX-License-Identifier: Apache-2.0

package zds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/sluice-mesh/sluice/internal/unixsock"
)

// MaxMessageBytes is the largest message either side may send.
const MaxMessageBytes = 1024

// maxFDs is how many descriptors a packet may bring before the kernel truncates them. The protocol knows one; room for
// more lets the receiver see, close and name the excess.
const maxFDs = 8

var (
	// ErrTooLong reports a message or a set of descriptors that does not fit in one packet.
	ErrTooLong = errors.New("message too long")
	// ErrMalformed reports a packet that is no message of the expected type.
	ErrMalformed = errors.New("malformed message")
)

// Listener is the agent's end: it accepts ztunnels that run as root or as the agent's own user.
type Listener struct {
	ln *unixsock.Listener
}

// Listen binds path, mode 0600, replacing a stale socket that an earlier process left there.
//
// It refuses to replace anything that is not a socket, and a socket that somebody listens on. Close removes the path.
func Listen(path string, log *slog.Logger) (*Listener, error) {
	ln, err := unixsock.Listen("unixpacket", path, log)
	if err != nil {
		return nil, fmt.Errorf("zds: %w", err)
	}
	return &Listener{ln}, nil
}

// Accept waits for the next ztunnel. After Close it returns an error wrapping net.ErrClosed.
func (l *Listener) Accept() (*Conn, error) {
	c, err := l.ln.AcceptUnix()
	if err != nil {
		return nil, fmt.Errorf("accept zds: %w", err)
	}
	return &Conn{c}, nil
}

// Close stops listening; accepted connections live on.
func (l *Listener) Close() error { return l.ln.Close() }

// Conn is one connection between agent and ztunnel. One goroutine may send while another receives.
type Conn struct {
	c *net.UnixConn
}

// Dial connects to the agent's socket at path.
func Dial(ctx context.Context, path string) (*Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unixpacket", path)
	if err != nil {
		return nil, fmt.Errorf("dial zds: %w", err)
	}
	return &Conn{c.(*net.UnixConn)}, nil
}

// PeerPID is the number of the process that connected, 0 if this process does not see its PID namespace.
func (c *Conn) PeerPID() int {
	peer, err := unixsock.Peer(c.c)
	if err != nil {
		return 0
	}
	return int(peer.Pid)
}

// Send writes m as one packet, with fds as its SCM_RIGHTS. The caller keeps its fds.
func (c *Conn) Send(m proto.Message, fds ...int) error {
	b, err := proto.Marshal(m)
	if err != nil {
		return fmt.Errorf("send zds: %w", err)
	}
	return c.SendRaw(b, fds...)
}

// SendRaw writes b as one packet. Tests use it to send what Send would not.
func (c *Conn) SendRaw(b []byte, fds ...int) error {
	if len(b) > MaxMessageBytes {
		return fmt.Errorf("send zds: %d bytes: %w", len(b), ErrTooLong)
	}
	if err := unixsock.WritePacket(c.c, b, fds); err != nil {
		return fmt.Errorf("send zds: %w", err)
	}
	return nil
}

// Receive reads one packet into m and returns the descriptors that came with it, close-on-exec, owned by the caller.
//
// Errors: io.EOF when the peer closed; wrapping [ErrTooLong] when data or descriptors were truncated; wrapping
// [ErrMalformed] when the packet is no m. On any error all descriptors of the packet have been closed.
func (c *Conn) Receive(m proto.Message) ([]int, error) {
	buf := make([]byte, MaxMessageBytes)
	n, fds, err := unixsock.ReadPacket(c.c, buf, maxFDs)
	switch {
	case errors.Is(err, io.EOF):
		return nil, io.EOF
	case errors.Is(err, unixsock.ErrTruncated):
		return nil, fmt.Errorf("receive zds: over %d bytes or %d descriptors: %w", MaxMessageBytes, maxFDs, ErrTooLong)
	case err != nil:
		return nil, fmt.Errorf("receive zds: %w", err)
	}
	if err := proto.Unmarshal(buf[:n], m); err != nil {
		CloseFDs(fds)
		return nil, fmt.Errorf("receive zds: %w: %v", ErrMalformed, err)
	}
	return fds, nil
}

// CloseFDs closes descriptors that nobody wants.
func CloseFDs(fds []int) { unixsock.CloseFDs(fds) }

// SetDeadline bounds the sends and receives that follow; the zero time means no bound.
func (c *Conn) SetDeadline(t time.Time) error { return c.c.SetDeadline(t) }

// SetReadDeadline bounds the receives that follow.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.c.SetReadDeadline(t) }

// Close ends the connection and unblocks a Receive in progress.
func (c *Conn) Close() error { return c.c.Close() }
