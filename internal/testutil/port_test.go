// SPDX-License-Identifier: Apache-2.0

package testutil

import (
	"errors"
	"fmt"
	"net"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A port of FreePort is its program's again after a restart, whoever asks the kernel for any port meanwhile.
func TestFreePortIsKept(t *testing.T) {
	port := FreePort(t)
	address := fmt.Sprintf("127.0.0.1:%d", port)
	for range 2 {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatalf("listen: %v", err)
		}
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatalf("dial: %v", err)
		}
		_ = c.Close()
		_ = l.Close()

		if got := listenAnywhere(t, port); !errors.Is(got, unix.EADDRINUSE) {
			t.Errorf("listen on any port, of which there is only this one: got %v, want %v", got, unix.EADDRINUSE)
		}
		if got := dialFrom(t, port); !errors.Is(got, unix.EADDRNOTAVAIL) {
			t.Errorf("dial from any port, of which there is only this one: got %v, want %v", got, unix.EADDRNOTAVAIL)
		}
	}
}

// only makes the kernel choose port when it is asked for any.
func only(t *testing.T, port int) func(string, string, syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_LOCAL_PORT_RANGE, port<<16|port)
		}); e != nil {
			return e
		}
		if errors.Is(err, unix.ENOPROTOOPT) {
			t.Skip("IP_LOCAL_PORT_RANGE came with Linux 6.3")
		}
		return err
	}
}

func listenAnywhere(t *testing.T, port int) error {
	t.Helper()
	l, err := (&net.ListenConfig{Control: only(t, port)}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err == nil {
		_ = l.Close()
	}
	return err
}

func dialFrom(t *testing.T, port int) error {
	t.Helper()
	there, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	c, err := (&net.Dialer{Control: only(t, port)}).DialContext(t.Context(), "tcp", there.Addr().String())
	if err == nil {
		_ = c.Close()
	}
	return err
}
