// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-mesh/sluice/installer/cniconf"
)

// rooted is a configuration that finds its folders below a root with these files.
func rooted(t *testing.T, files map[string]string) *cniConfig {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return &cniConfig{BinDir: auto, ConfDir: auto, Mode: modeChained, HostRoot: root}
}

func TestLocateTakesTheKnownLayoutWithoutRuntime(t *testing.T) {
	c := rooted(t, map[string]string{"etc/cni/net.d/10-net.conflist": keptConf, "home/kubernetes/bin/ptp": "", "opt/cni/bin/loopback": ""})
	at, err := c.locate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if at.Guess == nil {
		t.Error("it is no guess")
	}
	at.Guess = nil
	want := places{ConfDir: filepath.Join(c.HostRoot, "etc/cni/net.d"), BinDir: filepath.Join(c.HostRoot, "home/kubernetes/bin"), Source: "layout GKE"}
	if *at != want {
		t.Errorf("got %+v, want %+v", *at, want)
	}
}

func TestLocateWaitsForTheRuntimeItWasGiven(t *testing.T) {
	c := rooted(t, map[string]string{"etc/cni/net.d/10-net.conflist": keptConf, "opt/cni/bin/ptp": ""})
	c.CRISocket = filepath.Join(c.HostRoot, "none.sock")
	if at, err := c.locate(t.Context()); !errors.Is(err, cniconf.ErrNoConfig) || !strings.Contains(err.Error(), "none.sock") {
		t.Errorf("got %+v, %v, want an error that names the socket", at, err)
	}
}

func TestLocateKeepsGivenFolders(t *testing.T) {
	c := rooted(t, map[string]string{"etc/cni/net.d/10-net.conflist": keptConf, "opt/cni/bin/ptp": ""})
	c.BinDir = "/elsewhere/bin"
	at, err := c.locate(t.Context())
	if err != nil || at.BinDir != "/elsewhere/bin" || at.ConfDir != filepath.Join(c.HostRoot, "etc/cni/net.d") {
		t.Errorf("got %+v, %v", at, err)
	}
}

// The primary CNI may be uninstalled first.
func TestUninstallFindsWhatIsLeftWithoutPrimary(t *testing.T) {
	c := rooted(t, map[string]string{"etc/cni/net.d/" + cniconf.OwnedName: `{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"ptp"},{"type":"sluice-cni"}]}`, "opt/cni/bin/sluice-cni": ""})
	if _, err := c.locate(t.Context()); !errors.Is(err, cniconf.ErrNoConfig) {
		t.Fatalf("got %v, want %v", err, cniconf.ErrNoConfig)
	}
	if err := uninstallAll(c.anywhere(), slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"etc/cni/net.d/" + cniconf.OwnedName, "opt/cni/bin/sluice-cni"} {
		if _, err := os.Stat(filepath.Join(c.HostRoot, name)); !os.IsNotExist(err) {
			t.Errorf("%s: %v, want it gone", name, err)
		}
	}
}

func TestEntryExcludesTheAgentsOwnNamespace(t *testing.T) {
	for name, tc := range map[string]struct {
		exclude, own, want string
	}{
		"plugin's default":        {"", "sluice-system", ""},
		"no namespace":            {"", "", ""},
		"another namespace":       {"", "mesh", "kube-system mesh"},
		"beside those given":      {"a, b", "mesh", "kube-system mesh a b"},
		"among those given":       {"a,mesh", "mesh", "kube-system mesh a"},
		"default not among given": {"a", "sluice-system", "kube-system sluice-system a"},
		"given what is excluded":  {"kube-system", "", ""},
	} {
		c := &cniConfig{Exclude: tc.exclude, OwnNamespace: tc.own}
		if got := strings.Join(c.entry(&paths{}).ExcludeNamespaces, " "); got != tc.want {
			t.Errorf("%s: got %q, want %q", name, got, tc.want)
		}
	}
}

// An entry that cannot be taken out may name the plugin of any folder.
func TestPluginStaysWithAnyEntry(t *testing.T) {
	list, err := cniconf.Insert([]byte(keptConf), cniconf.Entry{AgentSocket: "/run/a.sock"})
	if err != nil {
		t.Fatal(err)
	}
	c := rooted(t, map[string]string{
		"a/10-net.conflist":                     string(list),
		"b/net/" + cniconf.DropInName + "/full": "", // cannot be removed as a file can
		"bin/sluice-cni":                        "",
	})
	path := func(name string) string { return filepath.Join(c.HostRoot, name) }
	all := []*places{{ConfDir: path("a"), BinDir: path("bin")}, {ConfDir: path("b"), BinDir: path("bin")}}
	log := slog.New(slog.DiscardHandler)
	if err := uninstallAll(all, log); err == nil {
		t.Error("no error, although an entry stays")
	}
	if left, err := os.ReadFile(path("a/10-net.conflist")); err != nil || cniconf.Contains(left) {
		t.Errorf("conflist: %s, %v, want it without our entry", left, err)
	}
	if _, err := os.Stat(path("bin/sluice-cni")); err != nil {
		t.Errorf("plugin: %v, want that it stays", err)
	}
	if err := os.RemoveAll(path("b/net")); err != nil {
		t.Fatal(err)
	}
	if err := uninstallAll(all, log); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path("bin/sluice-cni")); !os.IsNotExist(err) {
		t.Errorf("plugin: %v, want that it is gone", err)
	}
}
