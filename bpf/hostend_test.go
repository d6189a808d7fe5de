// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestHostEndsFollowThePods: the fallback comes to pods that were attached before and after, and goes with them and when
// it is no longer needed.
func TestHostEndsFollowThePods(t *testing.T) {
	for _, name := range []string{"ptp", "bridge"} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			pods, host4, host6 := wirings[name](t, w)
			first := w.enrol(t, pods[0], withAddresses(pods[0]))
			w.attachProbe(t, HookHostEnd)
			second := w.enrol(t, pods[1], withAddresses(pods[1]))
			for _, pod := range []*enrolled{first, second} {
				for addr, host := range map[netip.Addr]netip.Addr{pod.Addr4: host4, pod.Addr6: host6} {
					app := netip.AddrPortFrom(addr, 80)
					pod.Echo(t, "app", app.String())
					wantAnswer(t, w.host.NS, app, "app", host)
				}
				if got := askMapped(t, w.host.NS, netip.AddrPortFrom(pod.Addr4, 80)); got.Name != "app" {
					t.Errorf("mapped: got %q, want app", got.Name)
				}
			}
			if got := w.hostEndPins(t); len(got) != 2 {
				t.Errorf("pins: got %v, want two", got)
			}
			w.attach(t, pods[1]) // in place
			if err := w.host.Do(func() error { return w.DetachPod(pods[1].Name) }); err != nil {
				t.Fatal(err)
			}
			if got := w.hostEndPins(t); len(got) != 1 {
				t.Errorf("pins without the second: got %v, want one", got)
			}
			w.attachProbe(t, HookCgroup)
			if got := w.hostEndPins(t); len(got) != 0 {
				t.Errorf("pins with cgroup2: got %v, want none", got)
			}
			wantAnswer(t, w.host.NS, netip.AddrPortFrom(first.Addr4, 80), "app", host4)
		})
	}
}

func (w *world) hostEndPins(t *testing.T) []string {
	t.Helper()
	pins, err := filepath.Glob(w.hostPin(hostEndPrefix) + "*")
	if err != nil {
		t.Fatal(err)
	}
	return pins
}

// TestTheFallbackTrustsNoMoreThanWasAskedFor: all processes of the host are trusted only where probe is known not to work
// and nobody said which ones are to be.
func TestTheFallbackTrustsNoMoreThanWasAskedFor(t *testing.T) {
	w := newWorld(t)
	w.enrol(t, w.host.Pod(t, "pod"))
	empty, kubelet := mustCgroup(t), mustCgroup(t)
	for name, cfg := range map[string]HostConfig{
		"no cgroup2":          {Cgroup: t.TempDir(), ProbeCgroup: t.TempDir()},
		"not seen":            {Cgroup: empty, ProbeCgroup: empty},
		"a cgroup of its own": {Cgroup: empty, ProbeCgroup: kubelet},
	} {
		cfg.Probe = true
		if got := w.attachHost(t, cfg).Probe; got.Kind != HookCgroup {
			t.Errorf("%s, with a cgroup given: got %+v, want no fallback", name, got)
		}
	}
	if got := w.hostEndPins(t); len(got) != 0 {
		t.Errorf("pins: got %v, want none", got)
	}
	if got := w.attachHost(t, HostConfig{Probe: true, Cgroup: empty}).Probe; got.Kind != HookHostEnd {
		t.Errorf("without one: got %+v, want the fallback", got)
	}
}

func TestProbeIsIneffectiveOnlyIfThatIsKnown(t *testing.T) {
	for _, c := range []struct {
		name          string
		given         string
		probe         string
		err           error
		want, passing bool
	}{
		{name: "too old a kernel", probe: "/root", err: unix.EINVAL, want: true},
		{name: "given", given: "/root", probe: "/root", err: unix.EINVAL},
		{name: "kubelet's", probe: "/root/kubelet", err: unix.EINVAL},
		{name: "no file descriptor", probe: "/root", err: unix.EMFILE, passing: true},
		{name: "no memory", probe: "/root", err: unix.ENOMEM, passing: true},
	} {
		err := fmt.Errorf("attach: %w", errors.Join(c.err))
		if got := isPassing(err); got != c.passing {
			t.Errorf("%s: passing is %v", c.name, got)
		}
		a := hostAttachment{cfg: HostConfig{ProbeCgroup: c.given}, places: places{cgroup: "/root", probe: c.probe}}
		a.probeFails(&a.status.Probe, !isPassing(err))
		if a.ineffective != c.want {
			t.Errorf("%s: ineffective is %v", c.name, a.ineffective)
		}
	}
	a := hostAttachment{}
	if a.probeFails(&a.status.Flows, true); a.ineffective {
		t.Error("flows made probe ineffective")
	}
}

// TestHostEndsGoOnAfterABadPod: one pod cannot have the fallback, one has lost its device, the third gets it.
func TestHostEndsGoOnAfterABadPod(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"a", "b", "c"} {
		w.enrol(t, w.host.Pod(t, name))
	}
	pods, err := w.Pods()
	if err != nil || len(pods) != 3 {
		t.Fatalf("got %v, %v", pods, err)
	}
	pin := func(i int) string {
		return w.hostPin(fmt.Sprintf("%s%x", hostEndPod(pods[i].NetnsCookie), pods[i].HostIfindexes[0]))
	}
	if err := os.Mkdir(pin(0), 0o700); err != nil {
		t.Fatal(err)
	}
	w.host.MustDo(t, func() error {
		return netlink.LinkDel(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: pods[1].HostIfindexes[0]}})
	})
	s := w.attachHost(t, HostConfig{Probe: true, Cgroup: t.TempDir()}).Probe
	t.Cleanup(func() { _ = os.Remove(pin(0)) })
	if !s.Attached || !s.TrustsAll || !strings.Contains(s.Problem, pods[0].ID) || strings.Contains(s.Problem, pods[1].ID) {
		t.Errorf("got %+v, want only %q named", s, pods[0].ID)
	}
	if _, err := os.Stat(pin(2)); err != nil {
		t.Error(err)
	}
}
