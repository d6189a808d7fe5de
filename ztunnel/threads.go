// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"log/slog"
	"runtime"
	"strconv"
	"strings"
)

// threads is how many threads run at once: a number, or a share of the cores. The zero value leaves it to the defaults.
type threads struct {
	set     bool
	count   int // 0 means all cores
	percent int // 0 means that count says it
}

// String is the setting as it would be written.
func (t threads) String() string {
	switch {
	case !t.set:
		return ""
	case t.percent > 0:
		return strconv.Itoa(t.percent) + "%"
	}
	return strconv.Itoa(t.count)
}

// MarshalText implements [encoding.TextMarshaler], for the config dump.
func (t threads) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

func parseThreads(text string) (threads, error) {
	if share, ok := strings.CutSuffix(text, "%"); ok {
		n, err := strconv.Atoi(share)
		if err == nil && n >= 1 && n <= 100 {
			return threads{set: true, percent: n}, nil
		}
	} else if n, err := strconv.Atoi(text); err == nil && n >= 0 && n <= 1<<15 {
		return threads{set: true, count: n}, nil
	}
	return threads{}, fmt.Errorf("%q is neither a number of threads, 0 for all cores, nor a share from 1%% to 100%%", text)
}

// workers is how many threads c asks for on a machine of so many cores. The default is the reference's: a quarter of the
// cores, but two at least and what is requested, and never above the limit; except that one thread serves up to two cores
// better: a second one costs more in waking each other than it carries, and takes the core that the pods need.
func (c *Config) workers(cores int) int {
	if c.cpuCount > 0 {
		cores = c.cpuCount
	}
	t := c.WorkerThreads
	switch {
	case t.percent > 0:
		return max(1, (cores*t.percent+99)/100)
	case t.count > 0:
		return t.count
	case t.set:
		return cores
	}
	n := max(min(2, (cores+1)/2), (cores+3)/4, c.cpuRequest)
	if c.cpuLimit > 0 {
		n = min(n, c.cpuLimit)
	}
	return n
}

// limitThreads leaves Go's own variable in force unless ours is set.
func limitThreads(c *Config, getenv func(string) string, log *slog.Logger) {
	if !c.WorkerThreads.set && getenv("GOMAXPROCS") != "" {
		return
	}
	n := c.workers(runtime.NumCPU())
	runtime.GOMAXPROCS(n)
	log.Debug("threads that run at once", "threads", n)
}
