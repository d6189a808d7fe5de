// SPDX-License-Identifier: Apache-2.0

package unixsock

import (
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"
)

// ErrTruncated reports a packet with more bytes or descriptors than the reader has room for.
var ErrTruncated = errors.New("message too long")

// WritePacket sends b as one packet, with fds, which the caller keeps.
func WritePacket(c *net.UnixConn, b []byte, fds []int) error {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	_, _, err := c.WriteMsgUnix(b, oob, nil)
	return err
}

// ReadPacket reads one packet of a SOCK_SEQPACKET connection into buf. The descriptors that came with it, close-on-exec,
// are the caller's; on error there are none, those that came have been closed.
//
// Errors: io.EOF when the peer closed, or sent an empty packet, which is the same to the kernel; ErrTruncated when the
// packet is longer than buf or has more than maxFDs descriptors.
func ReadPacket(c *net.UnixConn, buf []byte, maxFDs int) (n int, fds []int, err error) {
	oob := make([]byte, unix.CmsgSpace(maxFDs*4))
	n, oobn, flags, _, err := c.ReadMsgUnix(buf, oob)
	// Also after an error: an empty packet reads as the end, and may have brought descriptors.
	fds, perr := parseRights(oob[:oobn])
	switch {
	case err != nil:
	case perr != nil:
		err = perr
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 || len(fds) > maxFDs:
		err = ErrTruncated
	case n == 0:
		err = io.EOF
	}
	if err != nil {
		CloseFDs(fds)
		return 0, nil, err
	}
	return n, fds, nil
}

// parseRights returns what descriptors it finds also with an error, for the caller to close.
func parseRights(oob []byte) (fds []int, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("parse control message: %w", err)
	}
	for i := range msgs {
		got, rerr := unix.ParseUnixRights(&msgs[i])
		if rerr != nil {
			err = fmt.Errorf("unexpected control message: %w", rerr)
			continue
		}
		fds = append(fds, got...)
	}
	return fds, err
}

// CloseFDs closes descriptors that nobody wants.
func CloseFDs(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}
