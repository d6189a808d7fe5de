// SPDX-License-Identifier: Apache-2.0

package inpod

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

// AskAgent returns a [ListenFunc] that gets the listeners from our own agent, which keeps copies of its own so that
// connections wait, rather than fail, while no ztunnel runs. tag is called with each socket, because what a listener is
// tagged with its connections inherit.
//
// What ztunnel holds already is offered to the agent: one that was restarted has lost its copies and adopts them.
func AskAgent(client nodeapi.Client, tag func(fd int) error) ListenFunc {
	return func(ctx context.Context, p *Pod, held *Listeners) (*Listeners, error) {
		names, offer, err := offered(held)
		defer nodeapi.CloseFDs(offer)
		if err != nil {
			return nil, fmt.Errorf("offer listeners: %w", err)
		}
		req := &nodeapi.Request{
			Verb:  nodeapi.VerbListeners,
			Pod:   &nodeapi.Pod{UID: p.UID, Namespace: p.Namespace, Name: p.Name},
			Slots: names,
		}
		resp, fds, err := client.Do(ctx, req, offer...)
		if err != nil {
			return nil, fmt.Errorf("ask for listeners: %w", err)
		}
		got, err := handedOver(resp.Slots, fds, tag)
		if err != nil {
			return nil, fmt.Errorf("take listeners: %w", err)
		}
		if held != nil && sameSockets(held, got) {
			got.Close()
			return held, nil
		}
		return got, nil
	}
}

// offered duplicates the held sockets. The caller closes the descriptors, also on error.
func offered(held *Listeners) (names []string, fds []int, err error) {
	if held == nil {
		return nil, nil, nil
	}
	for name, s := range held.bySlot() {
		fd, err := dup(s)
		if err != nil {
			return nil, fds, err
		}
		names, fds = append(names, name), append(fds, fd)
	}
	return names, fds, nil
}

// bySlot names each socket as the agent does.
func (l *Listeners) bySlot() iter.Seq2[string, syscall.Conn] {
	return func(yield func(string, syscall.Conn) bool) {
		roles := map[string][]*net.TCPListener{"outbound": l.Outbound, "inbound": l.Inbound, "hbone": l.HBONE, "dnstcp": l.DNSTCP}
		for role, set := range roles {
			for _, ln := range set {
				if !yield(role+familyDigit(ln.Addr()), ln) {
					return
				}
			}
		}
		for _, c := range l.DNSUDP {
			if !yield("dnsudp"+familyDigit(c.LocalAddr()), c) {
				return
			}
		}
	}
}

func familyDigit(a net.Addr) string {
	if at, err := netip.ParseAddrPort(a.String()); err == nil && at.Addr().Is4() {
		return "4"
	}
	return "6"
}

// dup avoids (*os.File).Fd, which would make the shared socket blocking for every process that has it.
func dup(s syscall.Conn) (int, error) {
	raw, err := s.SyscallConn()
	if err != nil {
		return -1, err
	}
	var fd int
	var derr error
	if err := raw.Control(func(p uintptr) { fd, derr = unix.FcntlInt(p, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return -1, err
	}
	return fd, os.NewSyscallError("fcntl", derr)
}

// handedOver takes ownership of fds.
func handedOver(names []string, fds []int, tag func(int) error) (*Listeners, error) {
	defer nodeapi.CloseFDs(fds) // FileListener makes copies.
	if len(names) != len(fds) {
		return nil, fmt.Errorf("%d names for %d descriptors", len(names), len(fds))
	}
	l := &Listeners{Shared: true}
	for i, name := range names {
		if err := l.add(name, fds[i], tag); err != nil {
			l.Close()
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	if len(l.Outbound) == 0 || len(l.Inbound) == 0 || len(l.HBONE) == 0 {
		l.Close()
		return nil, fmt.Errorf("got %s, need outbound, inbound and hbone", strings.Join(names, ", "))
	}
	return l, nil
}

func (l *Listeners) add(name string, fd int, tag func(int) error) error {
	var set *[]*net.TCPListener
	switch strings.TrimRight(name, "46") {
	case "outbound":
		set = &l.Outbound
	case "inbound":
		set = &l.Inbound
	case "hbone":
		set = &l.HBONE
	case "dnstcp":
		set = &l.DNSTCP
	case "dnsudp":
	default:
		return errors.New("unknown slot")
	}
	if err := tag(fd); err != nil {
		return fmt.Errorf("tag: %w", err)
	}
	copied, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	f := os.NewFile(uintptr(copied), name)
	defer func() { _ = f.Close() }()
	if set == nil {
		return l.addUDP(f)
	}
	ln, err := net.FileListener(f)
	if err != nil {
		return err
	}
	tcp, ok := ln.(*net.TCPListener)
	if !ok {
		_ = ln.Close()
		return errors.New("not a listening TCP socket")
	}
	*set = append(*set, tcp)
	return nil
}

func (l *Listeners) addUDP(f *os.File) error {
	c, err := net.FilePacketConn(f)
	if err != nil {
		return err
	}
	udp, ok := c.(*net.UDPConn)
	if !ok {
		_ = c.Close()
		return errors.New("not a UDP socket")
	}
	l.DNSUDP = append(l.DNSUDP, udp)
	return nil
}

// sameSockets reports whether a and b are copies of the same kernel sockets.
func sameSockets(a, b *Listeners) bool {
	cookiesA, errA := cookies(a)
	cookiesB, errB := cookies(b)
	return errA == nil && errB == nil && slices.Equal(cookiesA, cookiesB)
}

func cookies(l *Listeners) ([]uint64, error) {
	var all []uint64
	for _, s := range l.bySlot() {
		raw, err := s.SyscallConn()
		if err != nil {
			return nil, err
		}
		var cookie uint64
		var cerr error
		err = raw.Control(func(fd uintptr) {
			cookie, cerr = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_COOKIE)
		})
		if err := errors.Join(err, cerr); err != nil {
			return nil, err
		}
		all = append(all, cookie)
	}
	slices.Sort(all)
	return all, nil
}
