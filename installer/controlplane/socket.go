// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// listenUnix listens on path, mode 0600, and takes over from a socket that nobody answers on anymore.
//
// The socket is made under another name in the same folder and renamed once its mode is right. Accept only returns
// connections of root and of this process's own user. Close removes path if it is still this socket.
func listenUnix(path string, log *slog.Logger) (net.Listener, error) {
	if err := vacant(path); err != nil {
		return nil, fmt.Errorf("listen %q: %w", path, err)
	}
	temp := path + "~"  // hardly longer: a socket's path has at most 107 bytes
	_ = os.Remove(temp) // of a process that was killed half-way
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen %q: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	own := &ownListener{UnixListener: l, path: path, log: log}
	err = os.Chmod(temp, 0o600)
	if err == nil {
		own.file, err = os.Lstat(temp)
	}
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen %q: %w", path, err), l.Close(), os.Remove(temp))
	}
	return own, nil
}

// vacant tells whether path is free, or a socket left behind.
func vacant(path string) error {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case st.Mode().Type() != os.ModeSocket:
		return fmt.Errorf("is there already and is no socket (%s)", st.Mode())
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		return nil // ECONNREFUSED: its owner is gone
	}
	return errors.Join(errors.New("another process is listening"), conn.Close())
}

// ownListener admits connections of root and of the own user.
type ownListener struct {
	*net.UnixListener
	path string
	file os.FileInfo
	log  *slog.Logger
}

func (l *ownListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		uid, err := peerUID(conn)
		if err == nil && (uid == 0 || int(uid) == os.Geteuid()) {
			return conn, nil
		}
		l.log.Warn("control plane connection refused: only root and the agent's own user may connect", "uid", uid, "error", err)
		_ = conn.Close()
	}
}

func (l *ownListener) Close() error {
	if st, err := os.Lstat(l.path); err == nil && os.SameFile(st, l.file) {
		_ = os.Remove(l.path)
	}
	return l.UnixListener.Close()
}

func peerUID(conn *net.UnixConn) (uint32, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, err
	}
	if credErr != nil {
		return 0, fmt.Errorf("peer credentials: %w", credErr)
	}
	return cred.Uid, nil
}
