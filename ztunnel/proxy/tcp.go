// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/ztunnel/hbone"
)

// hidden4 and hidden6 are the addresses that handed-over listeners are bound to. Nobody owns them; a connection that
// really is to one of them was not steered here by the datapath.
var (
	hidden4 = netip.AddrFrom4([4]byte{203, 0, 113, 1})
	hidden6 = netip.MustParseAddr("100::1")
)

// HiddenAddrs lists the addresses of ztunnel's listeners, to which every connection is refused.
func HiddenAddrs() []netip.Addr { return []netip.Addr{hidden4, hidden6} }

func isHidden(a netip.Addr) bool { return a == hidden4 || a == hidden6 }

// isReserved reports the ports of ztunnel itself, which no connection may be aimed at (ambient section 1.1, "illegal
// ports"): it would loop. With our own datapath there are none: ztunnel's listeners are where no packet can be aimed at,
// and every port of the pod is the application's.
func (r *router) isReserved(port uint16) bool {
	return r.redirected && (port == 15001 || port == 15006 || port == 15008)
}

func addrPort(a net.Addr) netip.AddrPort {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := tcp.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}

// abort closes c with a reset, so that the other end sees a failure and not an end of data.
func abort(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}

// originalDst is where the client wanted to connect to: with our datapath the socket's local address, with the rules of a
// foreign agent what conntrack remembers.
func originalDst(c *net.TCPConn, redirected bool) (netip.AddrPort, error) {
	if !redirected {
		return addrPort(c.LocalAddr()), nil
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, err
	}
	var to netip.AddrPort
	var known bool
	err = raw.Control(func(fd uintptr) {
		if to, known = conntrackDst(int(fd), unix.SOL_IP); !known {
			to, known = conntrackDst(int(fd), unix.SOL_IPV6)
		}
	})
	if err == nil && !known {
		to = addrPort(c.LocalAddr())
		err = refuse(VerdictReservedPort, "connection to ztunnel's own port at %s", to)
	}
	return to, err
}

// soOriginalDst is SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST, which have one number.
const soOriginalDst = 80

func conntrackDst(fd, level int) (netip.AddrPort, bool) {
	// IPv6MTUInfo begins with a sockaddr_in6, the largest answer; x/sys has no plainer call for it.
	info, err := unix.GetsockoptIPv6MTUInfo(fd, level, soOriginalDst)
	if err != nil {
		return netip.AddrPort{}, false
	}
	port := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, info.Addr.Port))
	if info.Addr.Family == unix.AF_INET {
		// A sockaddr_in has its address where a sockaddr_in6 has the flow label.
		var b [4]byte
		binary.NativeEndian.PutUint32(b[:], info.Addr.Flowinfo)
		return netip.AddrPortFrom(netip.AddrFrom4(b), port), true
	}
	return netip.AddrPortFrom(netip.AddrFrom16(info.Addr.Addr).Unmap(), port), true
}

// transferred asks the kernel how many bytes a live connection received from and delivered to its peer. Less one each: the
// kernel may count a SYN or FIN. Zero if the connection is gone.
func transferred(c *net.TCPConn) (received, delivered uint64) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, 0
	}
	_ = raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			received, delivered = lessOne(info.Bytes_received), lessOne(info.Bytes_acked)
		}
	})
	return received, delivered
}

func lessOne(n uint64) uint64 { return max(n, 1) - 1 }

// isQuiet reports the errors by which peers end connections every day; ambient section 4.7 counts them as graceful.
func isQuiet(err error) bool {
	for _, quiet := range []error{unix.ECONNRESET, unix.EPIPE, unix.ENOTCONN, net.ErrClosed} {
		if errors.Is(err, quiet) {
			return true
		}
	}
	var reset *hbone.StreamError
	return errors.As(err, &reset) && reset.Remote && slices.Contains(quietResets, reset.Code)
}

// quietResets are what a peer ends a stream with when the connection at its end was reset (RFC 9113, section 8.5), or once
// the answer is complete and the request is not: NO_ERROR of servers (section 8.1), CANCEL of whoever drops the stream.
var quietResets = []hbone.ErrCode{hbone.CodeConnect, hbone.CodeStreamClosed, hbone.CodeCancel, hbone.CodeNo}

func isClosed(err error) bool {
	return errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded)
}
