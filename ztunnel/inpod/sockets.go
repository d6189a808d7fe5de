// SPDX-License-Identifier: Apache-2.0

package inpod

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/netns"
)

// KeepAlive is that of TCP connections unless [Options] say otherwise; ambient section 4.7.
var KeepAlive = net.KeepAliveConfig{Enable: true, Idle: 180 * time.Second, Interval: 180 * time.Second, Count: 9}

// Sockets makes sockets inside pods. A socket belongs to the namespace its creating thread is in, so creation happens on
// threads kept for that; connecting and all else happens anywhere.
type Sockets struct {
	prepare func(fd int) error
	options Options
	jobs    chan socketJob
}

type socketJob struct {
	ns     *netns.NS
	family int
	kind   int // SOCK_STREAM, SOCK_DGRAM or SOCK_RAW
	want   int
	done   chan<- socketResult
}

// socketResult has at least one socket, or an error.
type socketResult struct {
	fds []int
	err error
}

// NewSockets starts the threads, which live until ctx ends. prepare is called with each new socket before anything else
// is done with it: it tags or marks the socket so that the pod's datapath leaves it alone.
func NewSockets(ctx context.Context, prepare func(fd int) error) *Sockets {
	s := &Sockets{prepare: prepare, options: Options{TCP: TCP{KeepAlive: KeepAlive}}, jobs: make(chan socketJob)}
	for range max(2, runtime.GOMAXPROCS(0)/2) {
		go s.work(ctx)
	}
	return s
}

// work never unlocks its thread, so that if it cannot leave a pod's namespace the thread ends with it.
func (s *Sockets) work(ctx context.Context) {
	runtime.LockOSThread()
	home, err := netns.Current()
	for {
		select {
		case <-ctx.Done():
			return
		case job := <-s.jobs:
			if err != nil { // there was no descriptor for it; now there may be
				home, err = netns.Current()
			}
			result := socketResult{err: err}
			if err == nil {
				result.fds, result.err = socketsIn(job)
				// Back at once: a thread that stays would keep the namespace of a deleted pod alive.
				if back := unix.Setns(home.FD(), unix.CLONE_NEWNET); back != nil {
					job.done <- result
					go s.work(ctx)
					return
				}
			}
			job.done <- result
		}
	}
}

func socketsIn(job socketJob) ([]int, error) {
	if err := job.ns.Enter(); err != nil {
		return nil, err
	}
	protocol := unix.IPPROTO_TCP
	switch job.kind {
	case unix.SOCK_DGRAM:
		protocol = unix.IPPROTO_UDP
	case unix.SOCK_RAW:
		protocol = unix.IPPROTO_RAW
	}
	fds := make([]int, 0, job.want)
	for range job.want {
		fd, err := unix.Socket(job.family, job.kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol)
		if err != nil && len(fds) == 0 {
			return nil, fmt.Errorf("socket: %w", err)
		}
		if err != nil {
			break
		}
		fds = append(fds, fd)
	}
	return fds, nil
}

// open returns a prepared socket inside ns, not yet bound or connected. The caller closes it.
func (s *Sockets) open(ctx context.Context, ns *netns.NS, family, kind int) (int, error) {
	fds, err := s.openSome(ctx, ns, family, kind, 1)
	if err != nil {
		return -1, err
	}
	return fds[0], nil
}

// openSome returns between 1 and want sockets like open, or an error.
func (s *Sockets) openSome(ctx context.Context, ns *netns.NS, family, kind, want int) ([]int, error) {
	done := make(chan socketResult, 1)
	select {
	case s.jobs <- socketJob{ns, family, kind, want, done}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	r := <-done
	if r.err != nil {
		return nil, r.err
	}
	for _, fd := range r.fds {
		if err := s.prepare(fd); err != nil {
			closeAll(r.fds)
			return nil, fmt.Errorf("prepare socket: %w", err)
		}
	}
	return r.fds, nil
}

// dial connects to to from inside the pod. A valid from is the source address, which must be the pod's.
func (p *Pod) dial(ctx context.Context, from netip.Addr, to netip.AddrPort) (*net.TCPConn, error) {
	conn, err := p.dialOnce(ctx, netip.AddrPortFrom(from, 0), to, nil)
	return conn, dialError(to, err)
}

func dialError(to netip.AddrPort, err error) error {
	if err == nil {
		return nil
	}
	return &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(to), Err: err}
}

func (p *Pod) dialOnce(ctx context.Context, from, to netip.AddrPort, avoid Avoid) (*net.TCPConn, error) {
	fd, err := p.socket(ctx, familyOf(to.Addr()))
	if err != nil {
		return nil, err
	}
	conn, err := connect(ctx, fd, from, to, avoid)
	if err != nil {
		return nil, err
	}
	// After FileConn, which sets a keepalive of its own.
	if err := p.sockets.options.TCP.Apply(conn); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// connect takes ownership of fd. An avoid makes it bind to an address that need not be the pod's.
func connect(ctx context.Context, fd int, from, to netip.AddrPort, avoid Avoid) (*net.TCPConn, error) {
	var err error
	if from.Addr().IsValid() {
		err = bind(fd, from, avoid != nil)
	}
	if err == nil {
		err = os.NewSyscallError("connect", unix.Connect(fd, sockaddr(to)))
	}
	pending := errors.Is(err, unix.EINPROGRESS)
	if (err == nil || pending) && avoid != nil && avoid(localAddr(fd)) {
		err, pending = errAvoided, false
	}
	if err != nil && !pending {
		_ = unix.Close(fd)
		return nil, err
	}
	// Only now: a socket registered with the poller before connect reads as hung up.
	f := os.NewFile(uintptr(fd), "tcp")
	defer func() { _ = f.Close() }()
	if pending {
		if err := awaitConnect(ctx, f); err != nil {
			return nil, err
		}
	}
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// bind makes the socket speak from an address; foreign means that it need not be the pod's. Port 0 is chosen at connect,
// per destination, so that 28000 connections to one port do not use up those to another.
func bind(fd int, from netip.AddrPort, foreign bool) error {
	if foreign {
		level, transparent := unix.SOL_IP, unix.IP_TRANSPARENT
		if !from.Addr().Is4() {
			level, transparent = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
		}
		if err := unix.SetsockoptInt(fd, level, transparent, 1); err != nil {
			return os.NewSyscallError("setsockopt IP_TRANSPARENT", err)
		}
	}
	level, option, name := unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, "IP_BIND_ADDRESS_NO_PORT"
	if from.Port() != 0 {
		// The same port serves one client towards several ports of the pod.
		level, option, name = unix.SOL_SOCKET, unix.SO_REUSEADDR, "SO_REUSEADDR"
	}
	if err := unix.SetsockoptInt(fd, level, option, 1); err != nil {
		return os.NewSyscallError("setsockopt "+name, err)
	}
	return os.NewSyscallError("bind "+from.String(), unix.Bind(fd, sockaddr(from)))
}

// awaitConnect waits until the connect in progress on f has ended, and returns how.
func awaitConnect(ctx context.Context, f *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = f.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = raw.Write(func(fd uintptr) bool {
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && code != 0 {
			err = unix.Errno(code)
		}
		if err != nil {
			result = os.NewSyscallError("connect", err)
			return true
		}
		_, err = unix.Getpeername(int(fd))
		return err == nil // else a wake-up for nothing: wait on
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return errors.Join(err, result)
}
