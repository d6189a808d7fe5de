// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// ticksPerSecond is USER_HZ, in which /proc counts processor time on all architectures that Linux has with a 64-bit word.
const ticksPerSecond = 100

// usage is processor time since the start of the processes or the machine, in seconds.
type usage struct {
	proxies float64 // user and system time, with the interrupts that the kernel counts as theirs
	machine float64 // of everything: all that /proc/stat does not call idle, waiting or stolen
}

// costed runs measure, which returns figures and the amount of work done, and appends the processor time per unit of
// work: of the way's proxies, and of the machine.
func (b *bench) costed(w way, measure func() (figures []float64, work float64, err error)) ([]float64, error) {
	before, err := b.usage(w)
	if err != nil {
		return nil, err
	}
	got, work, err := measure()
	if err != nil {
		return nil, err
	}
	after, err := b.usage(w)
	if err != nil {
		return nil, err
	}
	proxies := math.NaN()
	if w.procs != nil {
		proxies = (after.proxies - before.proxies) / work
	}
	return append(got, proxies, (after.machine-before.machine)/work), nil
}

// costRows are the rows of what costed appends.
func costRows(of, per string) []row {
	return []row{
		{what: of + ", processor time of the proxies", unit: "s / " + per},
		{what: of + ", processor time of the machine", unit: "s / " + per},
	}
}

func (b *bench) usage(w way) (u usage, err error) {
	pids, err := b.members(w.procs)
	if err != nil {
		return u, err
	}
	for _, pid := range pids {
		fields, err := statFields(pid)
		if err != nil {
			return u, err
		}
		for _, field := range fields[11:13] { // utime and stime
			ticks, err := strconv.ParseUint(string(field), 10, 64)
			if err != nil {
				return u, fmt.Errorf("/proc/%d/stat: %w", pid, err)
			}
			u.proxies += float64(ticks) / ticksPerSecond
		}
	}
	u.machine, err = busy()
	return u, err
}

// busy reads the first line of /proc/stat; proc(5): user, nice, system, idle, iowait, irq, softirq, steal.
func busy() (seconds float64, err error) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(data), "\n")
	fields := strings.Fields(line)
	if len(fields) < 8 {
		return 0, fmt.Errorf("/proc/stat: %q", line)
	}
	for _, i := range []int{1, 2, 3, 6, 7} {
		ticks, err := strconv.ParseUint(fields[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		seconds += float64(ticks) / ticksPerSecond
	}
	return seconds, nil
}

// members are the processes that were started under the names, with their workers: the lab gives each that it starts a
// session, which its children stay in.
func (b *bench) members(names []string) (pids []int, err error) {
	procs, err := b.Procs()
	if err != nil {
		return nil, err
	}
	sessions := map[int]bool{}
	for _, p := range procs {
		for _, name := range names {
			if p.Name == name && p.Alive() {
				sessions[p.PID] = true
			}
		}
	}
	if len(sessions) != len(names) {
		return nil, fmt.Errorf("%d processes of %v run", len(sessions), names)
	}
	if len(names) == 0 {
		return nil, nil
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		fields, err := statFields(pid)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // ended meanwhile
		} else if err != nil {
			return nil, err
		}
		if session, _ := strconv.Atoi(string(fields[3])); sessions[session] {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// statFields are those of /proc/PID/stat after the name, which may hold anything; the first is field 3 of proc(5).
func statFields(pid int) ([][]byte, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	if len(fields) < 20 {
		return nil, fmt.Errorf("/proc/%d/stat: %d fields", pid, len(fields))
	}
	return fields, nil
}
