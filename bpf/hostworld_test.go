// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"crypto/rand"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// attachHost is AttachHost on the node's thread: the node's namespace is the host. It is detached with the test.
//
// Programs at the cgroup2 root are called for every process of the machine, but do something only for sockets of this
// test's namespaces.
func (w *world) attachHost(t testing.TB, cfg HostConfig) HostStatus {
	t.Helper()
	t.Cleanup(func() {
		if err := w.DetachHost(); err != nil {
			t.Error(err)
		}
	})
	var s HostStatus
	w.host.MustDo(t, func() (err error) {
		s, err = w.AttachHost(cfg)
		return err
	})
	return s
}

func (w *world) hostStatus(t *testing.T) (s HostStatus) {
	t.Helper()
	w.host.MustDo(t, func() (err error) {
		s, err = w.HostStatus()
		return err
	})
	return s
}

// wantHook checks that a hook is attached without a problem.
func wantHook(t *testing.T, h HookStatus) {
	t.Helper()
	if !h.Attached || h.Problem != "" {
		t.Errorf("hook: got %+v, want it attached", h)
	}
}

func withAddresses(pod *testutil.Pod) func(*PodConfig) {
	return func(c *PodConfig) { c.Addresses = []netip.Addr{pod.Addr4, pod.Addr6} }
}

func cgroupRoot(t *testing.T) string {
	t.Helper()
	testutil.RequireRoot(t)
	m, err := findCgroup2()
	if err != nil {
		t.Fatal(err)
	}
	return m.Path
}

// mustCgroup makes a cgroup that is removed with the test.
func mustCgroup(t *testing.T) string {
	t.Helper()
	path := filepath.Join(cgroupRoot(t), "sluice-test-"+strings.ToLower(rand.Text()[:6]))
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeCgroup(t, path) })
	return path
}

// removeCgroup waits for the processes in it to be gone.
func removeCgroup(t *testing.T, path string) {
	t.Helper()
	testutil.Eventually(t, 20*time.Second, func() error {
		if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	})
}

// answerIn is what a process inside a cgroup is told by a server at addr: its name. An empty cgroup is this process' own.
func (w *world) answerIn(t *testing.T, cgroup string, addr netip.AddrPort) string {
	t.Helper()
	cmd := exec.Command("bash", "-c", `exec 3<>"/dev/tcp/$0/$1"; head -n 1 <&3`, addr.Addr().String(), strconv.Itoa(int(addr.Port())))
	if cgroup != "" {
		dir, err := os.Open(cgroup)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = dir.Close() }()
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	}
	var out []byte
	w.host.MustDo(t, func() (err error) {
		out, err = cmd.Output()
		return err
	})
	name, _, _ := strings.Cut(string(out), " ")
	return name
}

// askMapped asks over an IPv6 socket, which reaches IPv4 addresses as mapped ones.
func askMapped(t *testing.T, ns *testutil.NS, addr netip.AddrPort) testutil.Answer {
	t.Helper()
	fd := -1
	ns.MustDo(t, func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Connect(fd, &unix.SockaddrInet6{Addr: addr.Addr().As16(), Port: int(addr.Port())})
	})
	answer, err := testutil.Ask(connOf(t, fd))
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

// probes counts the connections of the host that dispatch would leave to the app now.
func (w *world) probes(t *testing.T) (n int) {
	t.Helper()
	var flow captureFlow
	var at uint64
	entries := w.maps.ProbeFlows.Iterate()
	for entries.Next(&flow, &at) {
		n++
	}
	if err := entries.Err(); err != nil {
		t.Fatal(err)
	}
	return n
}
