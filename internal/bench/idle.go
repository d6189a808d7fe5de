// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sluice-mesh/sluice/internal/lab"
)

// idleConns is how many connections are held at once, where the limit of open files allows it.
const idleConns = 10_000

// idle measures what a connection that says nothing costs both proxies together.
func (b *bench) idle() error {
	// Both ends of a connection are in one process: here, and in each haproxy.
	count := min(idleConns, (b.files-1000)/2)
	s := b.report.begin("Idle connections", fmt.Sprintf("Resident memory of both proxies together, before and with %d connections that each carried one byte each way.", count),
		"what", "unit", "sluice", "haproxy pair", "ratio", "goal")
	local := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	var each [2]float64
	for i, c := range []struct {
		from   string
		server *lab.Pod
		to     netip.AddrPort
		procs  []string
	}{
		{b.client.NS, b.server, netip.AddrPortFrom(b.server.Addr4, idlePort), []string{"ztunnel-node1", "ztunnel-node2"}},
		{b.pclient.NS, b.pserver, netip.AddrPortFrom(local, haproxyIn+idlePort), []string{"haproxy-client", "haproxy-server"}},
	} {
		before, with, err := b.holdIdle(c.from, c.server, c.to, c.procs, count)
		if err != nil {
			return fmt.Errorf("%s: %w", c.procs[0], err)
		}
		each[i] = float64(with-before) / float64(count) / 1024
	}
	b.report.add(s, "memory per connection", "KiB", number(each[0]), number(each[1]), number(each[0]/each[1]),
		verdict(each[0]/each[1], "≤ 1.0", 1, false)+", "+verdict(each[0], "≤ 32 KiB", 32, false))
	return nil
}

func (b *bench) holdIdle(from string, server *lab.Pod, to netip.AddrPort, procs []string, count int) (before, with int, err error) {
	ln, err := b.Listen(server.NS, net.JoinHostPort("0.0.0.0", strconv.Itoa(idlePort)))
	if err != nil {
		return 0, 0, err
	}
	defer ln.Close()
	go echoAll(ln)
	if before, err = b.resident(procs); err != nil {
		return 0, 0, err
	}
	conns := make([]net.Conn, count)
	defer func() {
		for _, c := range conns {
			if c != nil {
				_ = c.Close()
			}
		}
	}()
	if err := b.openIdle(from, to, conns); err != nil {
		return 0, 0, err
	}
	with, err = b.resident(procs)
	return before, with, err
}

// openIdle fills conns from a few workers; each connection has echoed a byte when it is done.
func (b *bench) openIdle(from string, to netip.AddrPort, conns []net.Conn) error {
	const workers = 8
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := w; i < len(conns) && errs[w] == nil; i += workers {
				conns[i], errs[w] = b.DialTimeout(from, to.String(), 10*time.Second)
				if errs[w] == nil {
					errs[w] = echoByte(conns[i])
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func echoByte(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write([]byte{1}); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}

// echoAll answers each connection's bytes until the peer closes. Not io.Copy: that takes a pipe per connection.
func echoAll(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			buf := make([]byte, 1)
			for {
				if _, err := c.Read(buf); err != nil {
					return
				}
				if _, err := c.Write(buf); err != nil {
					return
				}
			}
		}()
	}
}

// resident is the sum of the named processes' resident memory, in bytes.
func (b *bench) resident(names []string) (sum int, err error) {
	procs, err := b.Procs()
	if err != nil {
		return 0, err
	}
	found := 0
	for _, p := range procs {
		for _, name := range names {
			if p.Name == name {
				n, err := residentOf(p.PID)
				if err != nil {
					return 0, err
				}
				sum += n
				found++
			}
		}
	}
	if found != len(names) {
		return 0, fmt.Errorf("%d processes of %v run", found, names)
	}
	return sum, nil
}

// residentOf reads VmRSS of a process; proc(5).
func residentOf(pid int) (int, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("process %d has no resident memory", pid)
}
