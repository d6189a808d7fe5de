// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Whoever reads what get prints can tell a connection that was cut, also where the request's write met the reset and the
// answer's read only that the connection was closed then.
func TestGetNamesWhatCutItsConnection(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var ended ends
	conn, err := ended.dial(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_ = server.(*net.TCPConn).SetLinger(0)
	_ = server.Close()
	raw, err := conn.(noted).Conn.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) { // until the reset is there
		_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000)
	})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = conn.Write([]byte("GET"))
	_ = conn.Close()
	_, err = conn.Read(make([]byte, 1))
	err = ended.with(fmt.Errorf("GET: %w", err))
	if got := err.Error(); !strings.Contains(got, net.ErrClosed.Error()) || !strings.Contains(got, "connection reset") {
		t.Error(got)
	}
}
