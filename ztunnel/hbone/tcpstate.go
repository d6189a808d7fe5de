// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"net"

	"golang.org/x/sys/unix"
)

// tcpClosed reports whether the connection is over both ways for the kernel (TCP_CLOSE): after a reset, or after both
// FINs if this end sent its own first.
func tcpClosed(tcp *net.TCPConn) bool {
	closed := false
	control(tcp, func(fd int) {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		closed = err == nil && info.State == unix.BPF_TCP_CLOSE
	})
	return closed
}

// unsent is how many bytes the peer's kernel has not acknowledged, 0 if nobody will.
func unsent(tcp *net.TCPConn) int {
	n := 0
	control(tcp, func(fd int) {
		if v, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ); err == nil {
			n = v
		}
	})
	if n > 0 && tcpClosed(tcp) {
		return 0
	}
	return n
}

func control(tcp *net.TCPConn, f func(fd int)) {
	if raw, err := tcp.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { f(int(fd)) })
	}
}
