// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

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
	for name, open := range map[string]func(string) (*Node, error){"OpenNode": OpenNode, "LoadNode": func(root string) (*Node, error) { return LoadNode(root) }} {
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
	if err := m.Pin(filepath.Join(root, nodeDir, captureMapSocketTags)); err != nil {
		t.Fatal(err)
	}
	for name, open := range map[string]func(string) (*Node, error){"OpenNode": OpenNode, "LoadNode": func(root string) (*Node, error) { return LoadNode(root) }} {
		if _, err := open(root); !errors.Is(err, ebpf.ErrMapIncompatible) && !errors.Is(err, ErrNotLoaded) || err == nil {
			t.Errorf("%s: got %v, want %v", name, err, ebpf.ErrMapIncompatible)
		}
	}
	if now, err := ebpf.LoadPinnedMap(filepath.Join(root, nodeDir, captureMapSocketTags), nil); err != nil || now.MaxEntries() != 7 {
		t.Errorf("the map was replaced: %v, %v", now, err)
	} else {
		_ = now.Close()
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
