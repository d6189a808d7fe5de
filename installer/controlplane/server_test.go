// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/sluice-mesh/sluice/internal/testutil"
	"github.com/sluice-mesh/sluice/internal/unixsock"
)

// plane is a running server over an env's folders.
type plane struct {
	*env
	cfg  Config
	conn *grpc.ClientConn
	stop func()
	// mayImpersonate is asked by the server; nobody, unless a test says otherwise.
	mayImpersonate atomic.Pointer[func(string) bool]
}

func newPlane(t *testing.T, files map[string]string) *plane {
	t.Helper()
	p := &plane{env: newEnv(t, files)}
	p.cfg = Config{
		CADir: filepath.Join(t.TempDir(), "ca"), Socket: filepath.Join(t.TempDir(), "cp.sock"), NodeName: "node1",
		MayImpersonate: func(id string) bool { may := p.mayImpersonate.Load(); return may != nil && (*may)(id) },
		Logger:         p.logs.logger(),
		ManifestsDir:   p.manifests, WorkloadsDir: p.workloads, LastGoodDir: p.saved,
	}
	p.start()
	t.Cleanup(func() { p.stop() })
	return p
}

// start runs a new server; the one before must have been stopped.
func (p *plane) start() {
	p.t.Helper()
	s, err := New(p.cfg)
	if err != nil {
		p.t.Fatal(err)
	}
	p.Catalog = s.Catalog().(*Catalog)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	select {
	case <-s.Ready():
	case err := <-done:
		cancel()
		p.t.Fatalf("run: %v", err)
	}
	if p.conn, err = grpc.NewClient("unix://"+p.cfg.Socket, grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		p.t.Fatal(err)
	}
	p.stop = func() {
		p.stop = func() {}
		_ = p.conn.Close()
		cancel()
		if err := <-done; err != nil {
			p.t.Errorf("run: %v", err)
		}
	}
}

func TestSocketIsForRootOnly(t *testing.T) {
	p := newPlane(t, nil)
	st, err := os.Stat(p.cfg.Socket)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode: got %v, %v, want 0600", st.Mode(), err)
	}
	p.stop()
	if _, err := os.Stat(p.cfg.Socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket after the end: got %v, want not exist", err)
	}
}

// Even where the mode of the file would let it in, a process of another user is sent away.
func TestOtherUsersAreRefused(t *testing.T) {
	testutil.RequireRoot(t)
	p := newPlane(t, nil)
	if err := os.Chmod(p.cfg.Socket, 0o666); err != nil {
		t.Fatal(err)
	}
	// A folder that only root may enter would refuse the connection before the server can.
	for dir := filepath.Dir(p.cfg.Socket); strings.HasPrefix(dir, os.TempDir()+"/"); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread that gave up its user ends with this goroutine
		result <- connectAs(65534, p.cfg.Socket)
	}()
	if err := <-result; err != nil {
		t.Error(err)
	}
	if got := p.logs.count("uid=65534"); got != 1 {
		t.Errorf("the refusal was logged %d times, want once", got)
	}
}

// connectAs connects as another user and returns nil if the server closes the connection without a word.
func connectAs(uid uintptr, path string) error {
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); e != 0 {
		return fmt.Errorf("setresuid: %w", e)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}); err != nil {
		return err
	}
	// An HTTP/2 server speaks first: its SETTINGS would be the sign that we are let in.
	if n, err := unix.Read(fd, make([]byte, 64)); n > 0 || err != nil && !errors.Is(err, unix.ECONNRESET) {
		return fmt.Errorf("read %d bytes, %v, want the end of the connection", n, err)
	}
	return nil
}

func TestStaleSocketIsTakenOver(t *testing.T) {
	p := newPlane(t, nil)
	p.stop()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: p.cfg.Socket}), unix.Close(fd)); err != nil {
		t.Fatal(err)
	}
	p.start()
}

func TestSocketInTheWay(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(t *testing.T, path string)
		want    string
	}{
		"regular file": {func(t *testing.T, path string) {
			if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "there is a file already, not a socket"},
		"another server": {func(t *testing.T, path string) {
			l, err := unixsock.Listen("unix", path, (&logBuffer{}).logger())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = l.Close() })
		}, "another process is listening"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "cp.sock")
			c.prepare(t, path)
			before, err := os.Lstat(path)
			if err != nil {
				t.Fatal(err)
			}
			_, err = unixsock.Listen("unix", path, (&logBuffer{}).logger())
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want one with %q", err, c.want)
			}
			if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) {
				t.Errorf("what was there is gone: %v", err)
			}
		})
	}
}

func TestNewSaysAllThatIsMissing(t *testing.T) {
	_, err := New(Config{})
	for _, want := range []string{"CADir", "Socket", "MayImpersonate"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s named", err, want)
		}
	}
}
