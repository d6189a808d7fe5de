// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/lab"
)

// What clients send. The server closes after the last request, so that a client's port is free at once.
var (
	request     = []byte("GET / HTTP/1.1\r\nHost: bench\r\n\r\n")
	lastRequest = []byte("GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")
)

// retry repeats what a proxy or iperf3's server may spoil that still holds the run before.
func retry(attempt func() error) error { return lab.Poll(10*time.Second, attempt) }

// iperf moves bytes for the span and returns what the receiver got, in Gbit/s, and how many bytes went all in all: the
// second of warming up does not count for the rate. Reverse means from server to client. See [retry].
func (b *bench) iperf(ns string, to netip.AddrPort, streams int, reverse bool) (rate, moved float64, err error) {
	args := []string{"iperf3", "-J", "-c", to.Addr().String(), "-p", strconv.Itoa(int(to.Port())),
		"-P", strconv.Itoa(streams), "-t", strconv.Itoa(int(b.span.Seconds())), "-O", "1"}
	if reverse {
		args = append(args, "-R")
	}
	out, err := b.Output(ns, b.span+20*time.Second, args...)
	if err != nil {
		return 0, 0, fmt.Errorf("iperf3: %w: %s", err, out)
	}
	var result struct {
		Intervals []struct {
			Sum struct {
				Bytes float64 `json:"bytes"`
			} `json:"sum"`
		} `json:"intervals"`
		End struct {
			Received struct {
				Bits float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	if err := json.Unmarshal([]byte(out), &result); err != nil {
		return 0, 0, fmt.Errorf("iperf3: %w", err)
	}
	for _, each := range result.Intervals {
		moved += each.Sum.Bytes
	}
	if result.End.Received.Bits == 0 || moved == 0 {
		return 0, 0, fmt.Errorf("iperf3 moved nothing: %s", out)
	}
	return result.End.Received.Bits / 1e9, moved, nil
}

// exchange is one request on an open connection. The page is always the same, so its length is the first answer's.
type exchange struct {
	conn   net.Conn
	ask    []byte
	buf    []byte
	length int
}

func newExchange(conn net.Conn) *exchange {
	return &exchange{conn: conn, ask: request, buf: make([]byte, 4096)}
}

// newPing is an exchange with a server that sends back what it gets.
func newPing(conn net.Conn) *exchange {
	return &exchange{conn: conn, ask: make([]byte, pingBytes), buf: make([]byte, pingBytes), length: pingBytes}
}

func (e *exchange) do() error {
	if _, err := e.conn.Write(e.ask); err != nil {
		return err
	}
	if e.length > 0 {
		_, err := io.ReadFull(e.conn, e.buf[:e.length])
		return err
	}
	n := 0
	for {
		got, err := e.conn.Read(e.buf[n:])
		if err != nil {
			return err
		}
		n += got
		head := bytes.Index(e.buf[:n], []byte("\r\n\r\n"))
		if head >= 0 && n >= head+4+pageBytes {
			break
		}
	}
	if !bytes.HasPrefix(e.buf, []byte("HTTP/1.1 200")) {
		return fmt.Errorf("answer %.40q", e.buf)
	}
	e.length = n
	return nil
}

func (b *bench) dial(w way, to netip.AddrPort) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(b.ctx, 10*time.Second)
	defer cancel()
	return b.Dial(ctx, w.ns, to.String())
}

// openAll opens connections that each have done one exchange, which opens what is opened once. The caller closes those
// that it gets, even with an error.
func (b *bench) openAll(w way, to netip.AddrPort, conns int, wrap func(net.Conn) *exchange) (all []*exchange, err error) {
	for range conns {
		conn, err := b.dial(w, to)
		if err != nil {
			return all, err
		}
		e := wrap(conn)
		all = append(all, e)
		if err := e.do(); err != nil {
			return all, err
		}
	}
	return all, nil
}

func closeAll(all []*exchange) {
	for _, e := range all {
		_ = e.conn.Close()
	}
}

// together runs so many workers side by side and adds up their samples.
func together(workers int, work func(i int) ([]time.Duration, error)) ([]time.Duration, error) {
	var (
		mu   sync.Mutex
		all  []time.Duration
		errs []error
		wg   sync.WaitGroup
	)
	for i := range workers {
		wg.Go(func() {
			took, err := work(i)
			mu.Lock()
			defer mu.Unlock()
			all = append(all, took...)
			if err != nil && len(errs) < 3 {
				errs = append(errs, err)
			}
		})
	}
	wg.Wait()
	slices.Sort(all)
	return all, errors.Join(errs...)
}

// keepAlive does exchange after exchange on each of the connections for the span, as fast as answers come.
func (b *bench) keepAlive(all []*exchange) ([]time.Duration, error) {
	return together(len(all), func(i int) (took []time.Duration, err error) {
		for end := time.Now().Add(b.span); ; {
			began := time.Now()
			if !began.Before(end) {
				return took, nil
			}
			if err := all[i].do(); err != nil {
				return took, err
			}
			took = append(took, time.Since(began))
		}
	})
}

// atRate sends perSecond requests over so many connections, at set times. Latency counts from the time at which a
// request was due, so that a stall is not hidden by the requests that it held back.
func (b *bench) atRate(w way, conns int, perSecond float64) ([]time.Duration, error) {
	gap := time.Duration(float64(conns) / perSecond * float64(time.Second))
	return together(conns, func(i int) (took []time.Duration, err error) {
		conn, err := b.dial(w, w.http)
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		e := newExchange(conn)
		if err := e.do(); err != nil {
			return nil, err
		}
		due := time.Now().Add(gap * time.Duration(i) / time.Duration(conns))
		for end := due.Add(b.span); due.Before(end); due = due.Add(gap) {
			time.Sleep(time.Until(due))
			if err := e.do(); err != nil {
				return took, err
			}
			took = append(took, time.Since(due))
		}
		return took, nil
	})
}

// connectEach opens a connection for each request. Its workers stay in the namespace and make blocking system calls: what
// they use of the machine is missing to what is measured.
func (b *bench) connectEach(w way, workers int) ([]time.Duration, error) {
	return together(workers, func(int) (took []time.Duration, err error) {
		err = lab.In(w.ns, func() error {
			buf := make([]byte, 4096)
			for end := time.Now().Add(b.span); time.Now().Before(end); {
				began := time.Now()
				if err := only(w.http, buf); err != nil {
					return err
				}
				took = append(took, time.Since(began))
			}
			return nil
		})
		return took, err
	})
}

// only is the one request of a connection, from the namespace of the calling thread.
func only(to netip.AddrPort, buf []byte) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	limit := unix.Timeval{Sec: 10}
	for _, side := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} { // the latter bounds connect too
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, side, &limit); err != nil {
			return err
		}
	}
	if err := connect(fd, to); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	if _, err := unix.Write(fd, lastRequest); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	n := 0
	for n < len(buf) {
		got, err := unix.Read(fd, buf[n:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("read: %w", err)
		}
		if got == 0 {
			break
		}
		n += got
	}
	if !bytes.HasPrefix(buf[:n], []byte("HTTP/1.1 200")) || n < pageBytes {
		return fmt.Errorf("answer of %d bytes: %.40q", n, buf[:n])
	}
	return nil
}

// connect waits on when a signal interrupts it.
func connect(fd int, to netip.AddrPort) error {
	err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
	for err == unix.EINTR {
		_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, 10_000)
		if err == nil {
			var code int
			if code, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); code != 0 {
				err = unix.Errno(code)
			}
		}
	}
	return err
}
