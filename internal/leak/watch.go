// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/lab"
)

const (
	snapBytes   = 256      // of each frame: all headers and the first bytes of payload
	bufferBytes = 64 << 20 // so that a busy machine loses nothing
)

// Watch is a set of interfaces under observation.
type Watch struct {
	judge *judge
	taps  []*tap
	wg    sync.WaitGroup
}

// Start watches points; members are the addresses of the mesh. Stop ends it.
func Start(members []netip.Addr, points ...Point) (*Watch, error) {
	w := &Watch{judge: newJudge(members)}
	for _, p := range points {
		t, err := open(p)
		if err != nil {
			w.close()
			return nil, fmt.Errorf("watch %s of %s: %w", p.Interface, p.NS, err)
		}
		w.taps = append(w.taps, t)
	}
	for _, t := range w.taps {
		w.wg.Go(func() { t.err = t.read(w.judge) })
	}
	return w, nil
}

// SetMembers says which addresses are in the mesh from now on. Call it with none before a pod under watch leaves the mesh,
// and with all again after it has come back: what begins meanwhile may go on in clear.
func (w *Watch) SetMembers(members ...netip.Addr) { w.judge.setMembers(members) }

// Allow exempts a connection that was open before its ends were enrolled.
func (w *Watch) Allow(a, b netip.AddrPort) { w.judge.allow(a, b) }

// Stop ends the watch. A watch that lost a frame is an error: it proves nothing.
func (w *Watch) Stop() (Report, error) {
	for _, t := range w.taps {
		// What was sent before is in the buffer by now: veth delivers within send.
		_ = t.sock.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	}
	w.wg.Wait()
	var errs []error
	for _, t := range w.taps {
		errs = append(errs, t.err, t.losses())
	}
	w.close()
	return w.judge.report, errors.Join(errs...)
}

func (w *Watch) close() {
	for _, t := range w.taps {
		_ = t.sock.Close()
	}
}

// tap is a packet socket on one interface.
type tap struct {
	point Point
	sock  *os.File
	err   error
}

func open(p Point) (t *tap, err error) {
	err = lab.In(p.NS, func() error {
		link, err := net.InterfaceByName(p.Interface)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("socket: %w", err)
		}
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bufferBytes)
		// Only now the protocol: a socket that had one from the start would see every interface until bound.
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8, Ifindex: link.Index})
		if err != nil {
			_ = unix.Close(fd)
			return fmt.Errorf("bind: %w", err)
		}
		t = &tap{point: p, sock: os.NewFile(uintptr(fd), "packet:"+p.Interface)}
		return nil
	})
	return t, err
}

// read feeds the judge until the socket's deadline.
func (t *tap) read(j *judge) error {
	raw, err := t.sock.SyscallConn()
	if err != nil {
		return err
	}
	buf := make([]byte, snapBytes)
	for {
		var n int
		var from unix.Sockaddr
		var rerr error
		err := raw.Read(func(fd uintptr) bool {
			n, from, rerr = unix.Recvfrom(int(fd), buf, unix.MSG_TRUNC)
			return !errors.Is(rerr, unix.EAGAIN)
		})
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err := errors.Join(err, rerr); err != nil {
			if errors.Is(err, unix.ENETDOWN) {
				continue // the interface was taken down; it may come up again
			}
			return err
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && t.point.FromPod && ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		j.frame(t.point, buf[:min(n, snapBytes)], n)
	}
}

func (t *tap) losses() error {
	raw, err := t.sock.SyscallConn()
	if err != nil {
		return err
	}
	var stats *unix.TpacketStats
	var serr error
	if err := raw.Control(func(fd uintptr) {
		stats, serr = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	}); err != nil {
		return err
	}
	if serr != nil {
		return fmt.Errorf("packet statistics of %s: %w", t.point.Interface, serr)
	}
	if stats.Drops > 0 {
		return fmt.Errorf("%s of %s: %d of %d frames were lost, so nothing is proven", t.point.Interface, t.point.NS, stats.Drops, stats.Packets)
	}
	return nil
}
