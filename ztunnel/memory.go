// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// limitMemory tells Go's collector of the memory that the cgroup allows, less a tenth for what is not Go's: it collects
// more often near the limit, rather than be killed. Go's own variable wins.
func limitMemory(getenv func(string) string, log *slog.Logger) {
	if v := getenv("GOMEMLIMIT"); v != "" {
		log.Info("memory limit is the environment's", "GOMEMLIMIT", v)
		return
	}
	limit, err := cgroupMemory(os.DirFS("/"))
	switch {
	case err != nil:
		log.Warn("memory limit of the cgroup is not known", "error", err)
	case limit == 0:
		log.Debug("the cgroup does not limit memory")
	default:
		debug.SetMemoryLimit(limit / 10 * 9)
		log.Info("memory limit", "cgroup_bytes", limit, "collector_bytes", limit/10*9)
	}
}

// windowMemory is what the windows of all tunnels may hold, in bytes, 0 for no limit: as configured, or a quarter of the
// collector's limit, or of the machine's memory if there is none. Buffers may be half empty and the collector lets go of
// some late, so no more than about half of the limit is taken.
func windowMemory(c *Config, log *slog.Logger) int64 {
	if c.WindowMemory > 0 {
		return int64(c.WindowMemory)
	}
	limit := debug.SetMemoryLimit(-1)
	if limit == math.MaxInt64 {
		var machine unix.Sysinfo_t
		if err := unix.Sysinfo(&machine); err != nil {
			log.Warn("memory of the machine is not known, windows are not limited by it", "error", err)
			return 0
		}
		limit = int64(machine.Totalram) * int64(machine.Unit)
	}
	log.Info("limit of windows", "memory_bytes", limit, "for_windows", limit/4)
	return limit / 4
}

// cgroupMemory is the least memory.max (version 2) or memory.limit_in_bytes (version 1) of this process's cgroup and
// those above it, in bytes; 0 if none limits it. A process that sees only its own cgroup finds it at the root.
func cgroupMemory(root fs.FS) (int64, error) {
	text, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return 0, err
	}
	var least int64
	for line := range strings.Lines(string(text)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) != 3 {
			continue
		}
		mount, file := "sys/fs/cgroup", "memory.max"
		if fields[0] != "0" || fields[1] != "" {
			if !hasController(fields[1], "memory") {
				continue
			}
			mount, file = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
		}
		limit, err := leastUpwards(root, mount, fields[2], file)
		if err != nil {
			return 0, err
		}
		least = lesser(least, limit)
	}
	return least, nil
}

func hasController(list, name string) bool {
	for c := range strings.SplitSeq(list, ",") {
		if c == name {
			return true
		}
	}
	return false
}

// leastUpwards skips folders that are not there: those of a container's path on the host, and version 2's root.
func leastUpwards(root fs.FS, mount, group, file string) (int64, error) {
	var least int64
	for at := path.Clean("/" + group); ; at = path.Dir(at) {
		text, err := fs.ReadFile(root, path.Join(mount, at, file))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, err
		}
		if limit := parseLimit(string(text)); err == nil {
			least = lesser(least, limit)
		}
		if at == "/" {
			return least, nil
		}
	}
}

// unlimited is above any memory: version 1 says "no limit" with the largest multiple of a page.
const unlimited = 1 << 60

func parseLimit(text string) int64 {
	n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	if err != nil || n >= unlimited {
		return 0 // "max"
	}
	return n
}

// lesser of two limits, of which 0 is none.
func lesser(a, b int64) int64 {
	if a == 0 || (b != 0 && b < a) {
		return b
	}
	return a
}
