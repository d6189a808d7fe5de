// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-mesh/sluice/internal/netns"
)

func wantError(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got error %v, want %q", err, want)
	}
}

func TestAttachRefusesBadInput(t *testing.T) {
	w := newWorld(t)
	pod := w.host.Pod(t, "pod")
	stale := filepath.Join(t.TempDir(), "stale")
	if err := os.WriteFile(stale, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	before := w.trace(t, pod)
	for _, tt := range []struct {
		edit func(*PodConfig)
		want string
	}{
		{func(c *PodConfig) { c.ID = "" }, "pod id is empty"},
		{func(c *PodConfig) { c.ID = "../x" }, `pod id "../x": must be at most 255 bytes without "/" and "."`},
		{func(c *PodConfig) { c.ID = strings.Repeat("x", 256) }, "at most 255 bytes"},
		{func(c *PodConfig) { c.NetnsPath = "" }, "netns path is empty"},
		{func(c *PodConfig) { c.NetnsPath += "-missing" }, "no such file or directory"},
		{func(c *PodConfig) { c.NetnsPath = stale }, netns.ErrNotNetns.Error()},
		{func(c *PodConfig) { c.Interfaces = nil }, "no interfaces"},
		{func(c *PodConfig) { c.Interfaces = []string{"eth0", "eth7"} }, `interface "eth7": Link not found`},
		{func(c *PodConfig) { c.Interfaces = []string{"lo"} }, `interface "lo": is the loopback`},
		{func(c *PodConfig) { c.HostIfindexes = []int{0} }, "host ifindex 0 is not positive"},
		{func(c *PodConfig) { c.HostIfindexes = []int{9999} }, "attach guard_9999"},
		{func(c *PodConfig) { c.UID = strings.Repeat("x", maxInfoBytes) }, "do not fit into 4096"},
		{func(c *PodConfig) { c.Listeners = map[Slot]int{SlotInbound4: 1 << 20} }, "slot inbound4: inspect socket: bad file descriptor"},
	} {
		t.Run(tt.want, func(t *testing.T) {
			p, err := w.tryAttach(pod, tt.edit)
			wantError(t, err, tt.want)
			if p != nil {
				t.Error("got a pod, too")
			}
		})
	}
	if got, want := w.trace(t, pod), before; got != want {
		t.Errorf("left behind:\n got %s\nwant %s", got, want)
	}
	w.wantNoPins(t)
	wantError(t, w.DetachPod("a/b"), `pod id "a/b"`)
}
