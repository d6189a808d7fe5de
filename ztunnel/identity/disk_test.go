// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestKeysNeverReachTheDisk has a process of its own fetch, use and drop certificates while the kernel lets it write to no
// file at all, and in folders of its own, where even an empty file would show.
func TestKeysNeverReachTheDisk(t *testing.T) {
	const child = "SLUICE_TEST_NO_DISK"
	if os.Getenv(child) != "" {
		useWithoutDisk(t)
		return
	}
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run=^TestKeysNeverReachTheDisk$", "-test.v")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), child+"=1", "TMPDIR="+dir, "HOME="+dir, "XDG_RUNTIME_DIR="+dir, "XDG_CACHE_HOME="+dir)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestKeysNeverReachTheDisk") {
		t.Fatalf("%v\n%s", err, out)
	}
	if strings.Contains(string(out), "PRIVATE KEY") {
		t.Error("a key is in the output")
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left on disk: %v, %v", left, err)
	}
}

func useWithoutDisk(t *testing.T) {
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{}); err != nil {
		t.Fatal(err)
	}
	ca := newAuthority(t)
	m := managerOf(t, ca)
	m.Hold(testID("alice"))
	m.Hold(testID("bob"))
	c, s := handshake(t, ClientTLS(m, testID("alice"), []string{testID("bob").String()}), ServerTLS(m, testID("bob")))
	if c.err != nil || s.err != nil {
		t.Errorf("client: %v, server: %v", c.err, s.err)
	}
	m.Snapshot()
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil || len(fds) == 0 {
		t.Fatalf("descriptors: %v, %v", fds, err)
	}
	for _, fd := range fds {
		name, _ := os.Readlink(fd)
		kernels := strings.HasPrefix(name, "/sys/") || strings.HasPrefix(name, "/proc/")
		if info, err := os.Stat(fd); err == nil && info.Mode().IsRegular() && strings.HasPrefix(name, "/") && !kernels {
			t.Errorf("open file: %s", name)
		}
	}
	m.Release(testID("alice"))
	m.Release(testID("bob"))
}
