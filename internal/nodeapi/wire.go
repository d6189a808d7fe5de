// SPDX-License-Identifier: Apache-2.0

package nodeapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/sluice-mesh/sluice/internal/unixsock"
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
	return unixsock.WritePacket(c, b, fds)
}

// readMessage reads one packet into v. The descriptors that came with it are close-on-exec and the caller's; on error
// they are closed.
func readMessage(c *net.UnixConn, v any) ([]int, error) {
	buf := make([]byte, MaxMessageBytes)
	n, fds, err := unixsock.ReadPacket(c, buf, MaxFDs)
	switch {
	case errors.Is(err, io.EOF):
		return nil, io.ErrUnexpectedEOF
	case errors.Is(err, unixsock.ErrTruncated):
		return nil, ErrTooLong
	case err != nil:
		return nil, err
	}
	if err := decode(buf[:n], v); err != nil {
		CloseFDs(fds)
		return nil, err
	}
	return fds, nil
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

// CloseFDs closes descriptors that nobody wants.
func CloseFDs(fds []int) { unixsock.CloseFDs(fds) }
