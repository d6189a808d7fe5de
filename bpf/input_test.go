// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/netns"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

func wantError(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got error %v, want %q", err, want)
	}
}

func TestNodeNeedsABPFFS(t *testing.T) {
	testutil.RequireRoot(t)
	dir := t.TempDir()
	_, err := LoadNode(filepath.Join(dir, "sluice", "v1"))
	wantError(t, err, "is not on a bpffs: mount one (mount -t bpf bpf /sys/fs/bpf) or choose another pin root")
	if entries, _ := os.ReadDir(dir); len(entries) > 0 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestOpenNodeWantsALoadedOne(t *testing.T) {
	testutil.RequireRoot(t)
	root := filepath.Join(testutil.BPFFS(t), "v1")
	if _, err := OpenNode(root); !errors.Is(err, ErrNotLoaded) {
		t.Errorf("got %v, want %v", err, ErrNotLoaded)
	}
	first, err := LoadNode(root)
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddr("10.0.0.1")
	if err := first.Destinations().Add(addr); err != nil {
		t.Error(err)
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	for name, open := range map[string]func(string) (*Node, error){"OpenNode": OpenNode, "LoadNode": LoadNode} {
		n, err := open(root)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got, err := n.Destinations().List(); err != nil || !slices.Equal(got, []netip.Addr{addr}) {
			t.Errorf("%s: destinations: got %v, %v, want %v", name, got, err, addr)
		}
		_ = n.Close()
	}
}

func TestNodeOfAnotherVersionIsRefused(t *testing.T) {
	testutil.RequireRoot(t)
	root := filepath.Join(testutil.BPFFS(t), "v1")
	if err := os.MkdirAll(filepath.Join(root, nodeDir), 0o700); err != nil {
		t.Fatal(err)
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 7})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	if err := m.Pin(filepath.Join(root, nodeDir, captureMapComplete)); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadNode(root); !errors.Is(err, ebpf.ErrMapIncompatible) {
		t.Errorf("got %v, want %v", err, ebpf.ErrMapIncompatible)
	}
}

func TestEnsureBPFFSMountsOverNothing(t *testing.T) {
	testutil.RequireRoot(t)
	dir := t.TempDir()
	empty, full, foreign := filepath.Join(dir, "empty"), filepath.Join(dir, "full"), filepath.Join(dir, "foreign")
	for _, d := range []string{empty, full, foreign} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(full, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", foreign, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, d := range []string{empty, foreign} {
			if err := unix.Unmount(d, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		}
	})
	wantError(t, EnsureBPFFS(full), "the folder is not empty")
	wantError(t, EnsureBPFFS(foreign), "another file system is mounted there")
	if err := EnsureBPFFS(filepath.Join(dir, "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: got %v, want %v", err, os.ErrNotExist)
	}
	for range 2 {
		if err := EnsureBPFFS(empty); err != nil {
			t.Error(err)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if got := strings.Count(string(mounts), " "+empty+" "); err != nil || got != 1 {
		t.Errorf("mounts on %s: got %d, %v, want 1", empty, got, err)
	}
	n, err := LoadNode(filepath.Join(empty, "v1"))
	if err != nil {
		t.Fatal(err)
	}
	_ = n.Close()
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

func TestListenersThatWouldLoseConnectionsAreRefused(t *testing.T) {
	w := newWorld(t)
	pod := w.enrol(t, w.host.Pod(t, "pod"))
	other := w.host.Pod(t, "other")
	socket := func(domain, kind, proto int) (fd int) {
		pod.MustDo(t, func() (err error) {
			fd, err = unix.Socket(domain, kind|unix.SOCK_CLOEXEC, proto)
			return err
		})
		t.Cleanup(func() { _ = unix.Close(fd) })
		return fd
	}
	var lc net.ListenConfig
	lc.SetMultipathTCP(true)
	var mptcp net.Listener
	pod.MustDo(t, func() (err error) {
		mptcp, err = lc.Listen(context.Background(), "tcp4", "127.0.0.1:0")
		return err
	})
	defer func() { _ = mptcp.Close() }()
	plain := fdOf(t, pod.Listen(t, "tcp", "127.0.0.1:0"))
	for _, tt := range []struct {
		name string
		slot Slot
		fd   int
		want string
	}{
		{"MPTCP", SlotInbound4, fdOf(t, mptcp), "protocol is not plain TCP but 262"},
		{"UDP", SlotInbound4, socket(unix.AF_INET, unix.SOCK_DGRAM, 0), "protocol is not plain TCP but 17"},
		{"not listening", SlotInbound4, socket(unix.AF_INET, unix.SOCK_STREAM, 0), "not listening"},
		{"other family", SlotInbound6, plain, "family is not the slot's but 2"},
		{"not transparent", SlotOutbound4, plain, "not transparent: IP_TRANSPARENT 0"},
		{"not transparent, IPv6", SlotOutbound6, fdOf(t, pod.Listen(t, "tcp", "[::1]:0")), "not transparent: IPV6_TRANSPARENT 0"},
		{"other namespace", SlotInbound4, fdOf(t, other.Listen(t, "tcp", "127.0.0.1:0")), "of another network namespace"},
		{"no socket", SlotInbound4, 1 << 20, "bad file descriptor"},
		{"unknown slot", Slot(99), plain, "slot-99"},
	} {
		t.Run(tt.name, func(t *testing.T) { wantError(t, pod.bpf.SetListener(tt.slot, tt.fd), tt.want) })
	}
}

func TestListenersComeAndGo(t *testing.T) {
	w := newWorld(t)
	pod := w.enrol(t, w.host.Pod(t, "pod"))
	for slot, l := range pod.proxy.listeners {
		want, err := unix.GetsockoptUint64(fdOf(t, l), unix.SOL_SOCKET, unix.SO_COOKIE)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok, err := pod.bpf.ListenerCookie(slot); got != want || !ok || err != nil {
			t.Errorf("%v: cookie: got %d, %v, %v, want %d", slot, got, ok, err, want)
		}
	}
	_ = pod.proxy.listeners[SlotInbound4].Close()
	for range 2 {
		if err := pod.bpf.ClearListener(SlotHBONE6); err != nil {
			t.Error(err)
		}
	}
	for _, slot := range []Slot{SlotInbound4, SlotHBONE6} {
		if got, ok, err := pod.bpf.ListenerCookie(slot); got != 0 || ok || err != nil {
			t.Errorf("%v: got %d, %v, %v, want empty", slot, got, ok, err)
		}
	}
}

func TestSocketTags(t *testing.T) {
	w := newWorld(t)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	for _, tag := range []Tag{TagNone, TagProxy, TagNone} {
		if err := w.TagSocket(fd, tag); err != nil {
			t.Errorf("tag %v: %v", tag, err)
		}
		if got, err := w.SocketTag(fd); got != tag || err != nil {
			t.Errorf("got %v, %v, want %v", got, err, tag)
		}
	}
	wantError(t, w.TagSocket(fd, TagPass), "tag pass is not for sockets to be given")
	wantError(t, w.TagSocket(1<<20, TagProxy), "bad file descriptor")
	_, err = w.SocketTag(1 << 20)
	wantError(t, err, "bad file descriptor")
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	wantError(t, w.TagSocket(int(file.Fd()), TagProxy), "tag socket proxy: ")
}

func TestDestinations(t *testing.T) {
	w := newWorld(t)
	d := w.Destinations()
	if got, err := d.Complete(); got || err != nil {
		t.Errorf("new: complete: got %v, %v, want false", got, err)
	}
	v4, v6 := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")
	for range 2 {
		if err := d.Add(v4, v6, netip.MustParseAddr("::ffff:10.0.0.1")); err != nil {
			t.Error(err)
		}
	}
	if got, err := d.List(); err != nil || !slices.Equal(got, []netip.Addr{v4, v6}) {
		t.Errorf("List: got %v, %v, want %v, %v", got, err, v4, v6)
	}
	for range 2 {
		if err := d.Remove(v4); err != nil {
			t.Error(err)
		}
	}
	if got, err := d.List(); err != nil || !slices.Equal(got, []netip.Addr{v6}) {
		t.Errorf("List: got %v, %v, want %v", got, err, v6)
	}
	for _, want := range []bool{true, false, true} {
		if err := d.SetComplete(want); err != nil {
			t.Error(err)
		}
		if got, err := d.Complete(); got != want || err != nil {
			t.Errorf("complete: got %v, %v, want %v", got, err, want)
		}
	}
}

// TestDestinationThatDoesNotFitIsCaptured: an overflow of the set must not turn into a bypass.
func TestDestinationThatDoesNotFitIsCaptured(t *testing.T) {
	b := newBench(t, settings{})
	small, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 16, ValueSize: 1, MaxEntries: 1, Flags: unix.BPF_F_NO_PREALLOC})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = small.Close() }()
	d := Destinations{set: small, complete: b.node.maps.Complete}
	if err := d.SetComplete(true); err != nil {
		t.Fatal(err)
	}
	err = d.Add(netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"))
	wantError(t, err, "add destination 10.0.0.2")
	if got, err := d.Complete(); got || err != nil {
		t.Errorf("complete: got %v, %v, want false", got, err)
	}
}
