// SPDX-License-Identifier: Apache-2.0

package inpod

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// TCP is how connections find out that the other end is gone.
type TCP struct {
	// KeepAlive with Enable false turns keepalive off.
	KeepAlive net.KeepAliveConfig
	// UserTimeout is how long sent data may go without an acknowledgement; 0 leaves it to the kernel.
	UserTimeout time.Duration
}

// Apply sets t on a connection.
func (t TCP) Apply(conn *net.TCPConn) error {
	err := conn.SetKeepAliveConfig(t.KeepAlive)
	if t.UserTimeout <= 0 {
		return err
	}
	raw, rawErr := conn.SyscallConn()
	if rawErr != nil {
		return errors.Join(err, rawErr)
	}
	var set error
	rawErr = raw.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(t.UserTimeout.Milliseconds()))
	})
	return errors.Join(err, rawErr, os.NewSyscallError("setsockopt TCP_USER_TIMEOUT", set))
}

// Options of [Sockets]. The zero value is what they begin with, but for TCP, which begins with [KeepAlive].
type Options struct {
	TCP TCP
	// OwnSource connects to applications from the pod's own address and not from their clients'.
	OwnSource bool
	// ExclusivePorts keeps a second ztunnel from listening in the pods; IPv4Only listens on no IPv6 address. Both are for
	// listeners that [ListenInPod] makes.
	ExclusivePorts, IPv4Only bool
}

// Configure replaces the options. Call it before the first use.
func (s *Sockets) Configure(o Options) { s.options = o }

// MarkWith prepares a socket for pods redirected by a foreign agent whose rules leave the given mark alone.
func MarkWith(mark uint32) func(fd int) error {
	return func(fd int) error {
		err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark))
		if err != nil {
			return fmt.Errorf("mark %#x: %w", mark, os.NewSyscallError("setsockopt SO_MARK", err))
		}
		return nil
	}
}
