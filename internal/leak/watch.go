// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/lab"
)

const (
	snapBytes   = 256      // of each frame: all headers and the first bytes of payload
	bufferBytes = 64 << 20 // so that a busy machine loses nothing
	// finishTimeout bounds how long it takes to read what is in the buffers.
	finishTimeout = 30 * time.Second
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

// Stop judges all that passed before it was called, and ends the watch. A watch that lost a frame is an error: it proves
// nothing.
func (w *Watch) Stop() (Report, error) {
	var errs []error
	for _, t := range w.taps {
		errs = append(errs, t.finish())
	}
	w.wg.Wait()
	for _, t := range w.taps {
		errs = append(errs, t.err)
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
	taken atomic.Int64 // frames read
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
		t.taken.Add(1)
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && t.point.FromPod && ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		j.frame(t.point, buf[:min(n, snapBytes)], n)
	}
}

// finish waits until every frame that the socket got so far was read, and has the reader end.
func (t *tap) finish() error {
	defer func() { _ = t.sock.SetReadDeadline(time.Unix(1, 0)) }()
	got, drops, err := t.statistics()
	if err != nil {
		return fmt.Errorf("packet statistics of %s: %w", t.point.Interface, err)
	}
	if drops > 0 {
		return fmt.Errorf("%s of %s: %d of %d frames were lost, so nothing is proven", t.point.Interface, t.point.NS, drops, got)
	}
	return lab.Poll(finishTimeout, func() error {
		if n := t.taken.Load(); n < int64(got) {
			return fmt.Errorf("%s of %s: %d of %d frames were read, so nothing is proven", t.point.Interface, t.point.NS, n, got)
		}
		return nil
	})
}

// statistics returns how many frames the socket got since it was opened, those without room for them included. Call it
// once: the kernel counts anew afterwards.
func (t *tap) statistics() (got, drops uint32, err error) {
	raw, err := t.sock.SyscallConn()
	if err != nil {
		return 0, 0, err
	}
	var stats *unix.TpacketStats
	var serr error
	if err := raw.Control(func(fd uintptr) {
		stats, serr = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	}); err != nil {
		return 0, 0, err
	}
	if serr != nil {
		return 0, 0, serr
	}
	return stats.Packets, stats.Drops, nil
}
