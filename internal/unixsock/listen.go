// SPDX-License-Identifier: Apache-2.0

// Package unixsock is what the node's processes share for talking over unix sockets: listening where only root gets in,
// and packets that carry file descriptors.
package unixsock

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Listener accepts connections of root and of this process's own user, and of nobody else: the socket's mode says the
// same, but does not count where a volume was mounted that ignores it.
type Listener struct {
	ln   *net.UnixListener
	path string
	file os.FileInfo
	log  *slog.Logger
	// close works once, and a second caller waits for the first: by then the path may be another listener's, even with
	// the same inode number.
	close func() error
}

// Listen listens on path, mode 0600, and takes over from a socket that nobody answers on any more. network is "unix" or
// "unixpacket". Folders are made as needed.
//
// Anything else at path, a plain file or a live socket, is an error that names it. The socket is made under another
// name in the same folder and renamed once its mode is right.
func Listen(network, path string, log *slog.Logger) (*Listener, error) {
	l, err := listen(network, path, log)
	if err != nil {
		return nil, fmt.Errorf("listen %q: %w", path, err)
	}
	return l, nil
}

func listen(network, path string, log *slog.Logger) (*Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if err := awaitVacant(network, path); err != nil {
		return nil, err
	}
	temp := path + "~"  // hardly longer: a socket's path has at most 107 bytes
	_ = os.Remove(temp) // of a process that was killed half-way
	ln, err := net.ListenUnix(network, &net.UnixAddr{Name: temp, Net: network})
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false)
	l := &Listener{ln: ln, path: path, log: log}
	l.close = sync.OnceValue(l.closeOnce)
	err = os.Chmod(temp, 0o600)
	if err == nil {
		l.file, err = os.Lstat(temp)
	}
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		return nil, errors.Join(err, ln.Close(), os.Remove(temp))
	}
	return l, nil
}

// leaveTimeout is how long a process that is about to end may still listen.
const leaveTimeout = 2 * time.Second

var errTaken = errors.New("another process is listening")

func awaitVacant(network, path string) error {
	for deadline := time.Now().Add(leaveTimeout); ; {
		err := vacant(network, path)
		if !errors.Is(err, errTaken) || time.Now().After(deadline) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// vacant tells whether path is free, or a socket left behind.
func vacant(network, path string) error {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case st.Mode().Type() != os.ModeSocket:
		return fmt.Errorf("there is a %s already, not a socket; remove it", Kind(st.Mode()))
	}
	conn, err := net.Dial(network, path)
	switch {
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, os.ErrNotExist):
		return nil // its owner is gone
	case err != nil:
		return fmt.Errorf("there is a socket already: %w", err)
	}
	return errors.Join(errTaken, conn.Close())
}

// Kind names what a file is, for messages.
func Kind(m os.FileMode) string {
	switch {
	case m.IsDir():
		return "directory"
	case m.IsRegular():
		return "file"
	}
	return m.Type().String()
}

// Accept waits for the next connection that is let in. After Close it returns an error wrapping net.ErrClosed.
func (l *Listener) Accept() (net.Conn, error) { return l.AcceptUnix() }

// AcceptUnix is Accept with the connection's own type.
func (l *Listener) AcceptUnix() (*net.UnixConn, error) {
	for {
		conn, err := l.ln.AcceptUnix()
		if err != nil {
			return nil, err
		}
		peer, err := Peer(conn)
		if err == nil && (peer.Uid == 0 || int(peer.Uid) == os.Geteuid()) {
			return conn, nil
		}
		l.log.Warn("connection refused: only root and this process's own user may connect", "socket", l.path, "uid", peer.Uid, "error", err)
		_ = conn.Close()
	}
}

// Close stops listening and removes the path, unless another process has taken it over. Accepted connections live on.
// Closing again does nothing.
func (l *Listener) Close() error { return l.close() }

func (l *Listener) closeOnce() error {
	if st, err := os.Lstat(l.path); err == nil && os.SameFile(st, l.file) {
		_ = os.Remove(l.path)
	}
	return l.ln.Close()
}

// Addr implements net.Listener.
func (l *Listener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: l.ln.Addr().Network()} }

// Peer is the process that connected, as it was then. Its Pid is 0 if this process does not see its PID namespace.
func Peer(conn *net.UnixConn) (unix.Ucred, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return unix.Ucred{}, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return unix.Ucred{}, err
	}
	if credErr != nil {
		return unix.Ucred{}, fmt.Errorf("peer credentials: %w", credErr)
	}
	return *cred, nil
}
