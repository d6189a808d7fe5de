// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-mesh/sluice/internal/lab/cluster"
)

// TestClusterLeavesNothing runs a second cluster beside the one of all tests, and compares the machine before and after.
func TestClusterLeavesNothing(t *testing.T) {
	bare(t)
	before := traces(t)
	var own []string // what its traces are told by from those of other tests on the machine
	t.Run("second cluster", func(t *testing.T) {
		c := cluster.Start(t, cluster.Config{Nodes: 1})
		own = []string{c.Outside.Name, c.Nodes[0].NS.Name, filepath.Base(filepath.Dir(t.TempDir()))}
		ns := c.Namespace(t)
		c.Kubectl(t, "run", "--namespace="+ns, "--image="+cluster.AppImage, "--image-pull-policy=Never", "pod")
		c.Kubectl(t, "wait", "--namespace="+ns, "--for=condition=ready", "--timeout=60s", "pod/pod")
	})
	for what, list := range traces(t) {
		if what == "sysctls" && !slices.Equal(before[what], list) {
			t.Errorf("sysctls: before %v, after %v", before[what], list)
		}
		for _, line := range list {
			if slices.ContainsFunc(own, func(name string) bool { return strings.Contains(line, name) }) {
				t.Errorf("%s: %s is still there", what, line)
			}
		}
	}
}

// traces is what a cluster could leave on the machine.
func traces(t *testing.T) map[string][]string {
	t.Helper()
	read := func(path string) string {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(data))
	}
	glob := func(patterns ...string) (all []string) {
		for _, p := range patterns {
			found, err := filepath.Glob(p)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, found...)
		}
		return all
	}
	links, err := exec.Command("ip", "-o", "link").Output()
	if err != nil {
		t.Fatal(err)
	}
	processes, err := exec.Command("ps", "-eo", "args").Output()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string][]string{
		"network namespaces": glob("/run/netns/*"),
		"cgroups":            glob("/sys/fs/cgroup/*", "/sys/fs/cgroup/*/*"),
		"folders":            glob("/tmp/*", "/var/lib/*", "/run/*", "/etc/*", "/opt/*"),
		"mounts":             strings.Split(read("/proc/self/mountinfo"), "\n"),
		"links":              strings.Split(string(links), "\n"),
		"processes":          strings.Split(string(processes), "\n"),
	}
	for _, key := range []string{"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys"} {
		found["sysctls"] = append(found["sysctls"], key+"="+read("/proc/sys/"+key))
	}
	return found
}
