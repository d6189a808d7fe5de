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
)

// idleConns is how many connections are held at once, where the limit of open files allows it.
const idleConns = 10_000

// afterwards are the times after the last connection has closed at which memory is read again.
var afterwards = []time.Duration{time.Second, 10 * time.Second, 30 * time.Second}

// idle measures what a connection that says nothing costs both proxies together, and what stays when it has closed.
func (b *bench) idle() error {
	count := idleCount(b.files)
	s := b.report.begin("Idle connections", fmt.Sprintf("Resident memory of both proxies together, with their workers, with %d connections that each carried one byte each way "+
		"(asked for: %d; the limit of open files is %d for each process). nginx: pages that its processes share count in each.", count, idleConns, b.files), compared...)
	rows := []row{{what: "after the start", unit: "MiB"}, {what: "before", unit: "MiB"}, {what: "with the connections", unit: "MiB"}}
	for _, d := range afterwards {
		rows = append(rows, row{what: fmt.Sprintf("%v after they closed", d), unit: "MiB"})
	}
	stop, err := b.startEchoes()
	if err != nil {
		return err
	}
	defer stop()
	samples := make([]map[string]float64, len(rows))
	for i := range rows {
		samples[i] = map[string]float64{}
	}
	each := map[string]float64{}
	for _, w := range b.proxied() {
		got, err := b.holdIdle(w, count)
		if err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		for i, bytes := range append([]int{b.fresh[w.name]}, got...) {
			samples[i][w.name] = float64(bytes) / (1 << 20)
		}
		each[w.name] = float64(got[1]-got[0]) / float64(count) / 1024
	}
	for i, r := range rows {
		b.addCompared(s, r, samples[i])
	}
	b.addCompared(s, row{what: "per connection", unit: "KiB", goal: "≤ 1.0", limit: 1, most: 32}, each)
	return nil
}

// idleCount is how many connections all sides can hold when a process may have so many files open. Both ends of each are
// in one process here and in the pairs; ztunnel gives a pod that is alone half of what it does not keep, which is an eighth.
func idleCount(files int) int { return min(idleConns, (files-1000)/2, files/16*7-200) }

// holdIdle returns what is resident before, with, and afterwards, in bytes.
func (b *bench) holdIdle(w way, count int) (resident []int, err error) {
	read := func() error {
		n, err := b.resident(w.procs)
		resident = append(resident, n)
		return err
	}
	if err := read(); err != nil {
		return nil, err
	}
	conns := make([]net.Conn, count)
	err = b.openIdle(w.ns, w.echo, conns)
	if err == nil {
		err = read()
	}
	for _, c := range conns {
		if c != nil {
			_ = c.Close()
		}
	}
	if err != nil {
		return nil, err
	}
	closed := time.Now()
	for _, d := range afterwards {
		select {
		case <-b.ctx.Done():
			return nil, b.ctx.Err()
		case <-time.After(time.Until(closed.Add(d))):
		}
		if err := read(); err != nil {
			return nil, err
		}
	}
	return resident, nil
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

// resident is the sum of the named processes' resident memory and their workers', in bytes.
func (b *bench) resident(names []string) (sum int, err error) {
	pids, err := b.members(names)
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		n, err := residentOf(pid)
		if err != nil {
			return 0, err
		}
		sum += n
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
