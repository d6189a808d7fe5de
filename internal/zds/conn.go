// SPDX-License-Identifier: Apache-2.0

package zds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
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

// Listener is the agent's end: it accepts ztunnels.
type Listener struct {
	ln   *net.UnixListener
	path string
}

// Listen binds path, mode 0600, replacing a stale socket that an earlier process left there.
//
// It refuses to replace anything that is not a socket. Close removes the path.
func Listen(path string) (*Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("listen zds: %w", err)
	}
	if st, err := os.Lstat(path); err == nil {
		if st.Mode().Type() != os.ModeSocket {
			return nil, fmt.Errorf("listen zds: %q exists and is not a socket; remove it", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("listen zds: %w", err)
		}
	}
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("listen zds: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = ln.Close()
		return nil, fmt.Errorf("listen zds: %w", err)
	}
	return &Listener{ln, path}, nil
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
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := c.c.WriteMsgUnix(b, oob, nil); err != nil {
		return fmt.Errorf("send zds: %w", err)
	}
	return nil
}

// Receive reads one packet into m and returns the descriptors that came with it, close-on-exec, owned by the caller.
//
// Errors: io.EOF when the peer closed; wrapping [ErrTooLong] when data or descriptors were truncated; wrapping
// [ErrMalformed] when the packet is no m. On any error all descriptors of the packet have been closed.
func (c *Conn) Receive(m proto.Message) ([]int, error) {
	buf := make([]byte, MaxMessageBytes+1)
	oob := make([]byte, unix.CmsgSpace(maxFDs*4))
	n, oobn, flags, _, err := c.c.ReadMsgUnix(buf, oob)
	if err != nil {
		if errors.Is(err, io.EOF) {
			return nil, io.EOF
		}
		return nil, fmt.Errorf("receive zds: %w", err)
	}
	if n == 0 && oobn == 0 {
		return nil, io.EOF // A SEQPACKET peer that closed; the protocol has no empty packet.
	}
	fds, err := parseRights(oob[:oobn])
	switch {
	case err != nil:
		err = fmt.Errorf("receive zds: %w", err)
	case n > MaxMessageBytes || flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		err = fmt.Errorf("receive zds: over %d bytes or %d descriptors: %w", MaxMessageBytes, maxFDs, ErrTooLong)
	default:
		if perr := proto.Unmarshal(buf[:n], m); perr != nil {
			err = fmt.Errorf("receive zds: %w: %v", ErrMalformed, perr)
		}
	}
	if err != nil {
		CloseFDs(fds)
		return nil, err
	}
	return fds, nil
}

func parseRights(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("parse control message: %w", err)
	}
	var fds []int
	for i := range msgs {
		if got, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			fds = append(fds, got...)
		}
	}
	for _, fd := range fds {
		unix.CloseOnExec(fd)
	}
	return fds, nil
}

// CloseFDs closes descriptors that nobody wants.
func CloseFDs(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// SetDeadline bounds the sends and receives that follow; the zero time means no bound.
func (c *Conn) SetDeadline(t time.Time) error { return c.c.SetDeadline(t) }

// SetReadDeadline bounds the receives that follow.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.c.SetReadDeadline(t) }

// Close ends the connection and unblocks a Receive in progress.
func (c *Conn) Close() error { return c.c.Close() }
