// SPDX-License-Identifier: Apache-2.0

package unixsock

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

var quiet = slog.New(slog.DiscardHandler)

func pair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		_ = f.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		conns[i] = c.(*net.UnixConn)
	}
	return conns[0], conns[1]
}

// pipe lends its write end to packets: once nobody holds it, reading gives EOF.
func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = r.Close(), w.Close() })
	return r, w
}

// mustSend does what WritePacket cannot: Go adds a byte to an empty packet with descriptors.
func mustSend(t *testing.T, c *net.UnixConn, b []byte, fds []int) {
	t.Helper()
	oob := unix.UnixRights(fds...)
	msg := unix.Msghdr{Control: &oob[0]}
	msg.SetControllen(len(oob))
	if len(b) > 0 {
		msg.Iov = &unix.Iovec{Base: &b[0]}
		msg.Iov.SetLen(len(b))
		msg.SetIovlen(1)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		if _, _, errno := unix.Syscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&msg)), 0); errno != 0 {
			t.Errorf("sendmsg: %v", errno)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

func wantNoHolder(t *testing.T, r *os.File) {
	t.Helper()
	_ = r.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("a descriptor leaked: reading its pipe gives %v, want EOF", err)
	}
}

func TestRefusedPacketsLeaveNoDescriptor(t *testing.T) {
	for name, tc := range map[string]struct {
		bytes, fds int
		want       error
	}{
		"empty with descriptors": {0, 2, io.EOF},
		"too long":               {9, 1, ErrTruncated},
		"too many descriptors":   {1, 20, ErrTruncated},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t)
			r, w := pipe(t)
			fds := make([]int, tc.fds)
			for i := range fds {
				fds[i] = int(w.Fd())
			}
			mustSend(t, a, make([]byte, tc.bytes), fds)
			_ = w.Close()
			if _, got, err := ReadPacket(b, make([]byte, 8), 2); !errors.Is(err, tc.want) || got != nil {
				t.Fatalf("got descriptors %v, error %v, want %v", got, err, tc.want)
			}
			wantNoHolder(t, r)
		})
	}
}

func TestPacketArrivesWhole(t *testing.T) {
	a, b := pair(t)
	r, w := pipe(t)
	if err := WritePacket(a, []byte("12345678"), []int{int(w.Fd()), int(w.Fd())}); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	buf := make([]byte, 8)
	n, fds, err := ReadPacket(b, buf, 2)
	if err != nil || string(buf[:n]) != "12345678" || len(fds) != 2 {
		t.Fatalf("got %q, %v, %v", buf[:n], fds, err)
	}
	for _, fd := range fds {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("descriptor is not close-on-exec: %#x, %v", flags, err)
		}
	}
	CloseFDs(fds)
	wantNoHolder(t, r)
	_ = a.Close()
	if _, _, err := ReadPacket(b, buf, 2); !errors.Is(err, io.EOF) {
		t.Errorf("after the peer closed: got %v, want EOF", err)
	}
}

func TestListenTakesOverOnlyWhatIsDead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deep", "s")
	first, err := Listen("unixpacket", path, quiet)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v, want 0600", st.Mode(), err)
	}
	if _, err := Listen("unixpacket", path, quiet); err == nil || !strings.Contains(err.Error(), "another process is listening") {
		t.Fatalf("second listener: got %v", err)
	}
	_ = first.ln.Close() // as if killed: the path stays
	second, err := Listen("unixpacket", path, quiet)
	if err != nil {
		t.Fatal(err)
	}
	_ = first.Close()
	if _, err := os.Stat(path); err != nil {
		t.Errorf("closing the old listener took the new one's path: %v", err)
	}
	_ = second.Close()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Close: %v, want no file", err)
	}
}

// A mode that lets others in, as on a volume that ignores modes, must not.
func TestOtherUsersAreRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root")
		}
		t.Skip("needs root to become another user")
	}
	dir, err := os.MkdirTemp("/tmp", "unixsock")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	l, err := Listen("unix", path, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if err := errors.Join(os.Chmod(dir, 0o777), os.Chmod(path, 0o777)); err != nil {
		t.Fatal(err)
	}
	accepted := make(chan net.Conn, 1)
	go func() {
		if c, err := l.Accept(); err == nil {
			accepted <- c
		}
	}()
	if err := connectAs(65534, path); !errors.Is(err, io.EOF) {
		t.Fatalf("another user's connection: got %v, want it closed without a word", err)
	}
	own, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = own.Close() }()
	c := <-accepted
	defer func() { _ = c.Close() }()
	if peer, err := Peer(c.(*net.UnixConn)); err != nil || peer.Uid != 0 {
		t.Errorf("accepted %+v, %v, want root's connection only", peer, err)
	}
}

// connectAs connects to path as another user, on a thread that ends with it, and reads.
func connectAs(uid int, path string) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		keep := ^uintptr(0)
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(uid), keep); errno != 0 {
			result <- errno
			return
		}
		result <- connectAndRead(path)
	}()
	return <-result
}

func connectAndRead(path string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return err
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		return err
	}
	if n, err := unix.Read(fd, make([]byte, 1)); n != 0 || err != nil {
		return fmt.Errorf("read %d bytes, %v", n, err)
	}
	return io.EOF
}

func TestCloseAgainLeavesTheNextListenerAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	old, err := Listen("unixpacket", path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	next, err := Listen("unixpacket", path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = next.Close() }()
	old.file = next.file // as if the file system had given the inode number again
	if err := old.Close(); err != nil {
		t.Errorf("close again: %v", err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the next listener's socket: %v", err)
	}
}
