// SPDX-License-Identifier: Apache-2.0

package nodeapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"
)

var (
	// ErrGarbage reports an answer or a question that is no message of this protocol.
	ErrGarbage = errors.New("not a node API message")
	// ErrTooLong reports a message over MaxMessageBytes or MaxFDs.
	ErrTooLong = errors.New("message too long")
)

// writeMessage sends v as one packet with fds, which the caller keeps.
func writeMessage(c *net.UnixConn, v any, fds []int) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(b) > MaxMessageBytes || len(fds) > MaxFDs {
		return fmt.Errorf("%d bytes, %d descriptors: %w", len(b), len(fds), ErrTooLong)
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	_, _, err = c.WriteMsgUnix(b, oob, nil)
	return err
}

// readMessage reads one packet into v. The descriptors that came with it are close-on-exec and the caller's; on error
// they are closed.
func readMessage(c *net.UnixConn, v any) (fds []int, err error) {
	buf := make([]byte, MaxMessageBytes+1)
	oob := make([]byte, unix.CmsgSpace(MaxFDs*4))
	n, oobn, flags, _, err := c.ReadMsgUnix(buf, oob)
	if err != nil {
		return nil, err
	}
	fds, err = parseRights(oob[:oobn])
	defer func() {
		if err != nil {
			CloseFDs(fds)
			fds = nil
		}
	}()
	if err != nil {
		return fds, err
	}
	if n == 0 {
		return fds, io.ErrUnexpectedEOF
	}
	if n > MaxMessageBytes || flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		return fds, ErrTooLong
	}
	return fds, decode(buf[:n], v)
}

// decode accepts exactly one JSON value. Unknown keys are left to newer releases.
func decode(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("%w: %v", ErrGarbage, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: data after the message", ErrGarbage)
	}
	return nil
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
	return fds, nil
}

// CloseFDs closes descriptors that nobody wants.
func CloseFDs(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}
