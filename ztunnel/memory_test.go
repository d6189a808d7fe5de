// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"log/slog"
	"math"
	"runtime/debug"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/sluice-mesh/sluice/ztunnel/telemetry"
)

func TestMemoryLimitIsTheLeastOfTheCgroups(t *testing.T) {
	for name, tc := range map[string]struct {
		files map[string]string
		want  int64
	}{
		"own limit":       {map[string]string{"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "1000\n", "sys/fs/cgroup/a/memory.max": "max\n"}, 1000},
		"limit above":     {map[string]string{"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/memory.max": "700\n"}, 700},
		"no limit":        {map[string]string{"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": "max\n"}, 0},
		"own view":        {map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "900\n"}, 900},
		"version 1":       {map[string]string{"proc/self/cgroup": "5:cpu:/x\n4:hugetlb,memory:/x\n0::/\n", "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "800\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, 800},
		"path of a host":  {map[string]string{"proc/self/cgroup": "4:memory:/host/path\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "600\n"}, 600},
		"version 1, none": {map[string]string{"proc/self/cgroup": "4:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, 0},
	} {
		root := fstest.MapFS{}
		for file, text := range tc.files {
			root[file] = &fstest.MapFile{Data: []byte(text)}
		}
		if got, err := cgroupMemory(root); err != nil || got != tc.want {
			t.Errorf("%s: got %d, %v, want %d", name, got, err, tc.want)
		}
	}
	if _, err := cgroupMemory(fstest.MapFS{}); err == nil {
		t.Error("no error without /proc/self/cgroup")
	}
}

func TestMemoryLimitOfTheEnvironmentStands(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	levels, err := telemetry.ParseLevels("info")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	limitMemory(environment("GOMEMLIMIT", "1GiB"), telemetry.NewLogger(&out, telemetry.Text, levels))
	if got := debug.SetMemoryLimit(-1); got != before {
		t.Errorf("limit: got %d, want %d", got, before)
	}
	if !strings.Contains(out.String(), "GOMEMLIMIT") {
		t.Errorf("log: %q", out.String())
	}
}

func TestWindowsGetAQuarterOfTheMemory(t *testing.T) {
	before := debug.SetMemoryLimit(1 << 30)
	defer debug.SetMemoryLimit(before)
	log := slog.New(slog.DiscardHandler)
	if got := windowMemory(&Config{}, log); got != 1<<28 {
		t.Errorf("of a limit of 1 GiB: got %d, want %d", got, 1<<28)
	}
	if got := windowMemory(&Config{WindowMemory: 12345}, log); got != 12345 {
		t.Errorf("configured: got %d, want 12345", got)
	}
	debug.SetMemoryLimit(math.MaxInt64)
	if got := windowMemory(&Config{}, log); got < 16<<20 || got > 1<<50 {
		t.Errorf("without a limit: got %d, want a quarter of the machine's memory", got)
	}
}
