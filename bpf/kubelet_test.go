// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// startKubelet runs a process of that name in the node's namespace and in a cgroup until stop or the end of the test.
func (w *world) startKubelet(t *testing.T, cgroup string) (stop func()) {
	t.Helper()
	cat, err := exec.LookPath("cat")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), kubeletName)
	content, err := os.ReadFile(cat)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, content, 0o700); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(cgroup)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dir.Close() }()
	cmd := exec.Command(program)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	var stdin io.WriteCloser
	if stdin, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	w.host.MustDo(t, cmd.Start)
	stop = func() {
		_ = stdin.Close() // ends it
		_ = cmd.Wait()
	}
	t.Cleanup(stop)
	return stop
}

func TestProbeFollowsKubelet(t *testing.T) {
	w := newWorld(t)
	pod := w.host.Pod(t, "pod")
	w.enrol(t, pod, withAddresses(pod))
	addr := netip.AddrPortFrom(pod.Addr4, 80)
	pod.Echo(t, "app", addr.String())
	first, second := mustCgroup(t), mustCgroup(t)
	check := func(s HookStatus, trusted string, distrusted ...string) {
		t.Helper()
		wantHook(t, s)
		if want := trusted == cgroupRoot(t); s.TrustsAll != want || s.Cgroup != trusted {
			t.Errorf("got %+v, want %q trusted", s, trusted)
		}
		if got := w.answerIn(t, trusted, addr); got != "app" {
			t.Errorf("inside of %q: got %q, want app", trusted, got)
		}
		for _, cgroup := range distrusted {
			if got, want := w.answerIn(t, cgroup, addr), "inbound@"+addr.String(); got != want {
				t.Errorf("inside of %q: got %q, want %q", cgroup, got, want)
			}
		}
	}
	cfg := HostConfig{Probe: true}
	check(w.attachHost(t, cfg).Probe, cgroupRoot(t))
	stop := w.startKubelet(t, first)
	w.wantMoved(t, first)
	check(w.attachHost(t, cfg).Probe, first, second, cgroupRoot(t))
	stop()
	w.startKubelet(t, second)
	w.wantMoved(t, second)
	check(w.attachHost(t, cfg).Probe, second, first, cgroupRoot(t))
	wantHook(t, w.hostStatus(t).Probe)
}

// wantMoved waits until the status has noticed where kubelet is now.
func (w *world) wantMoved(t *testing.T, cgroup string) {
	t.Helper()
	testutil.Eventually(t, 20*time.Second, func() error {
		if s := w.hostStatus(t).Probe; !strings.Contains(s.Problem, fmt.Sprintf("kubelet is in cgroup %q now", cgroup)) {
			return fmt.Errorf("got %+v, want it to name %q", s, cgroup)
		}
		return nil
	})
}
