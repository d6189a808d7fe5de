// SPDX-License-Identifier: Apache-2.0

package inpod

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/netns"
)

// Ports of the listeners, ambient section 1.1.
const (
	PortOutbound = 15001
	PortInbound  = 15006
	PortHBONE    = 15008
)

// Mark is the mark by which the rules of a foreign agent know ztunnel's sockets.
const Mark = 0x539

// backlog of a listener; the kernel caps it at net.core.somaxconn.
const backlog = 4096

// SetMark prepares a socket for pods redirected by a foreign agent.
func SetMark(fd int) error {
	return MarkWith(Mark)(fd)
}

// ListenInPod creates the listeners inside the pod on their well-known ports, as the rules of a foreign agent expect,
// with SO_REUSEPORT, unless [Options] say otherwise, so that a second ztunnel can take over. Pods without IPv6 get IPv4 sockets.
//
// It is a [ListenFunc]: what is held already stays.
func ListenInPod(ctx context.Context, p *Pod, held *Listeners) (*Listeners, error) {
	if held != nil {
		return held, nil
	}
	var l Listeners
	roles := []struct {
		port uint16
		set  *[]*net.TCPListener
	}{{PortOutbound, &l.Outbound}, {PortInbound, &l.Inbound}, {PortHBONE, &l.HBONE}}
	for _, role := range roles {
		ln, err := p.listen(ctx, role.port)
		if err != nil {
			l.Close()
			return nil, fmt.Errorf("listen on port %d: %w", role.port, err)
		}
		*role.set = []*net.TCPListener{ln}
	}
	return &l, nil
}

// listen binds the wildcard address of both families, or of IPv4 where there is no IPv6.
func (p *Pod) listen(ctx context.Context, port uint16) (*net.TCPListener, error) {
	if p.sockets.options.IPv4Only {
		return p.listenOn(ctx, netip.AddrPortFrom(netip.IPv4Unspecified(), port))
	}
	ln, err := p.listenOn(ctx, netip.AddrPortFrom(netip.IPv6Unspecified(), port))
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL) {
		return p.listenOn(ctx, netip.AddrPortFrom(netip.IPv4Unspecified(), port))
	}
	return ln, err
}

func (p *Pod) listenOn(ctx context.Context, at netip.AddrPort) (*net.TCPListener, error) {
	fd, err := p.sockets.open(ctx, p.ns, familyOf(at.Addr()), unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "listener")
	defer func() { _ = f.Close() }() // FileListener has its own copy.
	if err := listenSocket(fd, at, !p.sockets.options.ExclusivePorts); err != nil {
		return nil, err
	}
	ln, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	return ln.(*net.TCPListener), nil
}

func listenSocket(fd int, at netip.AddrPort, reusePort bool) error {
	set := func(level, option, value int) error { return unix.SetsockoptInt(fd, level, option, value) }
	err := errors.Join(
		set(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		set(unix.SOL_SOCKET, unix.SO_REUSEPORT, btoi(reusePort)),
		set(unix.SOL_IP, unix.IP_TRANSPARENT, 1),
	)
	if !at.Addr().Is4() {
		err = errors.Join(err, set(unix.SOL_IPV6, unix.IPV6_V6ONLY, 0), set(unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1))
	}
	if err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	if err := unix.Bind(fd, sockaddr(at)); err != nil {
		return os.NewSyscallError("bind "+at.String(), err)
	}
	return os.NewSyscallError("listen", unix.Listen(fd, backlog))
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// CheckPrivileges reports what ztunnel may not do and must: enter network namespaces, mark and disguise sockets.
func CheckPrivileges() error {
	ns, err := netns.Current()
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	return ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		defer func() { _ = unix.Close(fd) }()
		if err := SetMark(fd); err != nil {
			return fmt.Errorf("mark a socket (CAP_NET_ADMIN): %w", err)
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1); err != nil {
			return fmt.Errorf("make a socket transparent (CAP_NET_ADMIN or CAP_NET_RAW): %w", err)
		}
		return nil
	})
}
