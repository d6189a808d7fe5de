// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxFrameBytes holds what a veth hands over when segmentation is left to the receiver.
	maxFrameBytes = 256 << 10
	// captureBufferBytes is asked for the packet socket, so that a busy machine loses nothing.
	captureBufferBytes = 64 << 20
)

// Capture records the frames that pass an interface.
type Capture struct {
	sock    *os.File
	raw     int
	packets []Packet
	done    chan error
}

// StartCapture begins to record on an interface of a namespace. Stop ends it.
func (l *Lab) StartCapture(ns, ifname string) (*Capture, error) {
	c := &Capture{done: make(chan error, 1)}
	if err := In(ns, func() error { return c.open(ifname) }); err != nil {
		return nil, fmt.Errorf("capture on %s of %s: %w", ifname, ns, err)
	}
	go c.read()
	return c, nil
}

func (c *Capture) open(ifname string) error {
	link, err := net.InterfaceByName(ifname)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBufferBytes)
	// Only now the protocol: a socket that had one from the start would see every interface until bound.
	err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: link.Index})
	if err != nil {
		_ = unix.Close(fd)
		return fmt.Errorf("bind: %w", err)
	}
	c.raw, c.sock = fd, os.NewFile(uintptr(fd), "packet:"+ifname)
	return nil
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

func (c *Capture) read() {
	buf := make([]byte, maxFrameBytes)
	for {
		n, err := c.sock.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = nil
			c.done <- err
			return
		} else if err != nil {
			c.done <- err
			return
		}
		if p, ok := parseFrame(buf[:n]); ok {
			c.packets = append(c.packets, p)
		}
	}
}

// Stop ends the recording and returns it. A recording with losses is an error: it proves nothing.
func (c *Capture) Stop() (Trace, error) {
	defer c.sock.Close()
	// What was sent before Stop was called is in the buffer by now: veth delivers within send.
	if err := c.sock.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		return nil, err
	}
	if err := <-c.done; err != nil {
		return nil, fmt.Errorf("capture: %w", err)
	}
	raw, err := c.sock.SyscallConn()
	if err != nil {
		return nil, err
	}
	var stats *unix.TpacketStats
	var serr error
	if err := raw.Control(func(fd uintptr) {
		stats, serr = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	}); err != nil {
		return nil, err
	}
	if serr != nil {
		return nil, fmt.Errorf("capture statistics: %w", serr)
	}
	if stats.Drops > 0 {
		return nil, fmt.Errorf("capture lost %d of %d packets", stats.Drops, stats.Packets)
	}
	return c.packets, nil
}
