// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"path/filepath"
	"testing"
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
