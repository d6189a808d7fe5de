// SPDX-License-Identifier: Apache-2.0

package testutil

import (
	"testing"

	"golang.org/x/sys/unix"
)

// FreePort returns a TCP port of 127.0.0.1 for a program that cannot be told port 0, and keeps it for the time of the test:
// a program that sets SO_REUSEADDR, as all of Go's do, can listen there, end, and listen again, while the kernel gives the
// port to nobody who asks for any, neither to listen nor to connect from.
func FreePort(t testing.TB) int {
	t.Helper()
	// It is bound, and never listens: that is what the kernel's bind lets others with SO_REUSEADDR share when they name it.
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("free port: %v", err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		t.Fatalf("free port: %v", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatalf("free port: %v", err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatalf("free port: %v", err)
	}
	return name.(*unix.SockaddrInet4).Port
}
