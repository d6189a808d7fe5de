// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/installer/cniconf"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

const keptConf = `{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"ptp"}]}`

// kept is a keeper that runs over a node's root of its own.
type kept struct {
	t         *testing.T
	root      string
	log       lockedBuffer
	cfg       cniConfig
	keeper    *keeper
	installed atomic.Bool
	stop      func() error  // ends run and returns what it returned
	tune      func(*keeper) // before it runs
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newKept prepares a node with the usual folders; change may alter them and the configuration before the keeper starts.
func newKept(t *testing.T, change func(*kept)) *kept {
	t.Helper()
	k := &kept{t: t, root: t.TempDir()}
	k.write("plugin/sluice-cni", "#!/bin/false\n")
	k.write("opt/cni/bin/ptp", "")
	k.write("etc/cni/net.d/10-net.conflist", keptConf)
	k.cfg = cniConfig{BinDir: auto, ConfDir: auto, Mode: modeChained, HostRoot: k.root, Plugin: filepath.Join(k.root, "plugin/sluice-cni")}
	if change != nil {
		change(k)
	}
	p := &paths{RunDir: "/run/sluice", StateDir: "/var/lib/sluice", PinRoot: "/sys/fs/bpf/sluice/v1"}
	k.keeper = newKeeper(&k.cfg, p, slog.New(slog.NewTextHandler(&k.log, nil)), k.installed.Store)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	if k.tune != nil {
		k.tune(k.keeper)
	}
	go func() { ended <- k.keeper.run(ctx, make(chan struct{})) }()
	k.stop = sync.OnceValue(func() error { cancel(); return <-ended })
	t.Cleanup(func() {
		_ = k.stop()
		if t.Failed() {
			t.Log(k.log.String())
		}
	})
	return k
}

func (k *kept) path(name string) string { return filepath.Join(k.root, name) }

// write replaces a file by rename, as other CNIs do.
func (k *kept) write(name, content string) {
	k.t.Helper()
	if err := os.MkdirAll(filepath.Dir(k.path(name)), 0o755); err != nil {
		k.t.Fatal(err)
	}
	aside := k.path(name) + ".aside"
	if err := os.WriteFile(aside, []byte(content), 0o755); err != nil {
		k.t.Fatal(err)
	}
	if err := os.Rename(aside, k.path(name)); err != nil {
		k.t.Fatal(err)
	}
}

// inPlace is nil when the runtime would use our entry and find our plugin.
func (k *kept) inPlace() error {
	list, err := os.ReadFile(k.path("etc/cni/net.d/10-net.conflist"))
	if err != nil || !cniconf.Contains(list) {
		return fmt.Errorf("conflist: %s, %v", list, err)
	}
	plugin, err := os.ReadFile(k.path("opt/cni/bin/sluice-cni"))
	if err != nil || string(plugin) != "#!/bin/false\n" {
		return fmt.Errorf("plugin: %q, %v", plugin, err)
	}
	if !k.installed.Load() {
		return fmt.Errorf("not reported as installed")
	}
	return nil
}

func (k *kept) wantInPlace() {
	k.t.Helper()
	testutil.Eventually(k.t, 10*time.Second, k.inPlace)
}

func TestKeeperPutsBackWhatOthersOverwrite(t *testing.T) {
	k := newKept(t, nil)
	k.wantInPlace()
	for i, damage := range []func(){
		func() { k.write("etc/cni/net.d/10-net.conflist", keptConf) },
		func() { k.write("opt/cni/bin/sluice-cni", "another") },
		func() { _ = os.Remove(k.path("opt/cni/bin/sluice-cni")) },
		func() { _ = os.Chmod(k.path("opt/cni/bin/sluice-cni"), 0o600) },
	} {
		damage()
		testutil.Eventually(t, 10*time.Second, func() error {
			if n := k.keeper.reinstall.Load(); n < uint64(i+1) {
				return fmt.Errorf("after damage %d: %d reinstalls", i, n)
			}
			return k.inPlace()
		})
	}
}

func TestKeeperWaitsForConfigurationAndFolders(t *testing.T) {
	k := newKept(t, func(k *kept) { _ = os.RemoveAll(k.path("etc")) })
	testutil.Eventually(t, 10*time.Second, func() error {
		if out := k.log.String(); !strings.Contains(out, "waiting for a CNI configuration") {
			return fmt.Errorf("log: %s", out)
		}
		return nil
	})
	k.write("etc/cni/net.d/10-net.conflist", keptConf)
	k.wantInPlace()
}

func TestKeeperReportsWhileTheConfigurationIsGone(t *testing.T) {
	k := newKept(t, nil)
	k.wantInPlace()
	if err := os.Remove(k.path("etc/cni/net.d/10-net.conflist")); err != nil {
		t.Fatal(err)
	}
	testutil.Eventually(t, 10*time.Second, func() error {
		if k.installed.Load() {
			return fmt.Errorf("still reported as installed")
		}
		return nil
	})
	k.write("etc/cni/net.d/10-net.conflist", keptConf)
	k.wantInPlace()
}

func TestKeeperFailsWithoutItsPlugin(t *testing.T) {
	k := newKept(t, func(k *kept) { k.cfg.Plugin = k.path("none") })
	testutil.Eventually(t, 10*time.Second, func() error {
		if out := k.log.String(); !strings.Contains(out, "find plugin") {
			return fmt.Errorf("log: %s", out)
		}
		return nil
	})
	if err := k.stop(); err == nil || !strings.Contains(err.Error(), "find plugin") {
		t.Errorf("got %v, want that there is no plugin", err)
	}
}

// TestKeeperIsNotDrivenToReinstallWithoutEnd overwrites the list as soon as our entry is in it.
func TestKeeperIsNotDrivenToReinstallWithoutEnd(t *testing.T) {
	k := newKept(t, nil)
	k.wantInPlace()
	began := time.Now()
	testutil.Eventually(t, 30*time.Second, func() error {
		if k.inPlace() == nil {
			k.write("etc/cni/net.d/10-net.conflist", keptConf)
		}
		if !strings.Contains(k.log.String(), "keeps overwriting the CNI folders") {
			return fmt.Errorf("no warning")
		}
		return nil
	})
	if n, most := k.keeper.reinstall.Load(), uint64(time.Since(began)/keepEvery)+1; n > most {
		t.Errorf("%d reinstalls in %v, want %d at most", n, time.Since(began), most)
	}
}

func TestKeeperLeavesTheNodeOnlyWhenTold(t *testing.T) {
	for name, tc := range map[string]struct {
		leave func(context.Context) (bool, string)
		gone  bool
	}{
		"no word":       {nil, false},
		"told to stay":  {func(context.Context) (bool, string) { return false, "upgrade" }, false},
		"told to leave": {func(ctx context.Context) (bool, string) { return ctx.Err() == nil, "deleted" }, true},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKept(t, func(k *kept) { k.cfg.Leave = tc.leave })
			k.wantInPlace()
			_ = k.stop()
			list, err := os.ReadFile(k.path("etc/cni/net.d/10-net.conflist"))
			if err != nil {
				t.Fatal(err)
			}
			_, err = os.Stat(k.path("opt/cni/bin/sluice-cni"))
			if gone := string(list) == keptConf && os.IsNotExist(err); gone != tc.gone {
				t.Errorf("gone: got %v (%s, %v), want %v", gone, list, err, tc.gone)
			}
		})
	}
}

// A folder that is never quiet must not keep the keeper from looking.
func TestKeeperLooksInTheMiddleOfAFlood(t *testing.T) {
	k := newKept(t, nil)
	k.wantInPlace()
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		pace := time.NewTicker(keepSettle / 4)
		defer pace.Stop()
		for {
			select {
			case <-stop:
				return
			case <-pace.C:
				_ = os.WriteFile(k.path("etc/cni/net.d/noise"), nil, 0o644)
			}
		}
	}()
	defer func() { close(stop); <-done }()
	if err := os.Remove(k.path("opt/cni/bin/sluice-cni")); err != nil {
		t.Fatal(err)
	}
	k.wantInPlace()
}
