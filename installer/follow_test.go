// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/installer/cniconf"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// newFollowing is a keeper beside a runtime that names the usual folders, and asks it at each look. /var/cni has others.
func newFollowing(t *testing.T, change func(*kept)) (*kept, *said) {
	t.Helper()
	s := &said{version: "2", conf: "/etc/cni/net.d", bin: "/opt/cni/bin", plugins: []string{"ptp", cniconf.PluginType}}
	k := newKept(t, func(k *kept) {
		k.write("var/cni/net.d/10-net.conflist", keptConf)
		k.write("var/cni/bin/ptp", "")
		k.write("run/containerd/keep", "")
		s.serve(t, k.root, containerd)
		k.tune = func(k *keeper) { k.askEvery = 0 }
		if change != nil {
			change(k)
		}
	})
	return k, s
}

func toVar(s *said) { s.conf, s.bin = "/var/cni/net.d", "/var/cni/bin" }

// look gives the keeper a reason to.
func (k *kept) look() { k.write("etc/cni/net.d/99-other.conf", "{}") }

func TestKeeperFollowsARuntimeToOtherFolders(t *testing.T) {
	k, s := newFollowing(t, nil)
	k.wantInPlace()
	s.change(toVar)
	k.look()
	movesToVar(k)
	s.change(func(s *said) { s.conf, s.bin = "/etc/cni/net.d", "/opt/cni/bin" })
	k.write("var/cni/net.d/99-other.conf", "{}")
	k.wantInPlace()
	testutil.Eventually(t, 10*time.Second, func() error {
		if list, err := os.ReadFile(k.path("var/cni/net.d/10-net.conflist")); err != nil || cniconf.Contains(list) {
			return fmt.Errorf("conflist that the runtime has left: %s, %v", list, err)
		}
		return nil
	})
	if k.keeper.reinstall.Load() != 0 {
		t.Error("the move counts as an overwritten entry")
	}
}

func TestKeeperAsksAtOnceWhenAFolderIsGone(t *testing.T) {
	k, s := newFollowing(t, func(k *kept) { k.tune = nil })
	k.wantInPlace()
	s.change(toVar)
	for _, dir := range []string{"etc/cni", "opt/cni"} {
		if err := os.RemoveAll(k.path(dir)); err != nil {
			t.Fatal(err)
		}
	}
	testutil.Eventually(t, askEvery/2, func() error {
		if list, err := os.ReadFile(k.path("var/cni/net.d/10-net.conflist")); err != nil || !cniconf.Contains(list) || !k.installed.Load() {
			return fmt.Errorf("conflist: %s, %v", list, err)
		}
		return nil
	})
}

// The runtime that named the folders is starting again; another one of the node's does not use them.
func TestKeeperStaysWithTheRuntimeThatNamedItsFolders(t *testing.T) {
	k, first := newFollowing(t, func(k *kept) { k.write("run/k3s/containerd/keep", "") })
	k.wantInPlace()
	second := &said{version: "2"}
	toVar(second)
	second.serve(t, k.root, "run/k3s/containerd/containerd.sock")
	first.stop()
	testutil.Eventually(t, 20*time.Second, func() error {
		k.look()
		if second.asked() < 3 {
			return fmt.Errorf("the second runtime was asked %d times", second.asked())
		}
		return nil
	})
	if err := k.inPlace(); err != nil {
		t.Error(err)
	}
	if list, err := os.ReadFile(k.path("var/cni/net.d/10-net.conflist")); err != nil || cniconf.Contains(list) {
		t.Errorf("conflist of the second runtime: %s, %v", list, err)
	}
}

// A runtime that is put back to a version that does not read the network's folder must not let pods pass.
func TestKeeperChoosesTheModeAgainForAnotherVersion(t *testing.T) {
	k, s := newFollowing(t, func(k *kept) { k.cfg.Mode = auto })
	file := k.path("etc/cni/net.d/net/" + cniconf.DropInName)
	testutil.Eventually(t, 10*time.Second, func() error {
		if _, err := os.Stat(file); err != nil || !k.installed.Load() {
			return fmt.Errorf("drop-in: %v", err)
		}
		return nil
	})
	s.change(func(s *said) { s.version, s.plugins = "1", []string{"ptp"} })
	k.look()
	k.wantInPlace()
	testutil.Eventually(t, 10*time.Second, func() error {
		if _, err := os.Stat(file); !os.IsNotExist(err) {
			return fmt.Errorf("drop-in: %v, want it gone", err)
		}
		return nil
	})
	if strings.Contains(k.log.String(), "overwritten") {
		t.Error("the change of mode counts as an overwritten entry")
	}
}
