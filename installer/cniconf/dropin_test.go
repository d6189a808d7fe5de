// SPDX-License-Identifier: Apache-2.0

package cniconf

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/google/go-cmp/cmp"
)

const dropList = `{"name":"net","cniVersion":"1.0.0","plugins":[{"type":"ptp"}]}`

// mustDropIn installs and returns the plugins that a runtime with libcni 1.3 then has.
func mustDropIn(t *testing.T, dir string, changed bool) (plugins []string) {
	t.Helper()
	_, got, err := InstallDropIn(dir, testEntry)
	if err != nil || got != changed {
		t.Fatalf("got changed %v, %v, want %v", got, err, changed)
	}
	primary, err := Primary(dir)
	if err != nil {
		t.Fatal(err)
	}
	list, err := libcni.NetworkConfFromFile(primary)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list.Plugins {
		plugins = append(plugins, p.Network.Type)
	}
	return plugins
}

func TestInstallDropInLeavesThePrimaryAlone(t *testing.T) {
	dir := folder(t, map[string]string{"10-a.conflist": dropList})
	before := contents(t, dir)
	for _, changed := range []bool{true, false} {
		if got := mustDropIn(t, dir, changed); !slices.Equal(got, []string{"ptp", PluginType}) {
			t.Errorf("got the plugins %v, want ours behind ptp", got)
		}
	}
	if st, err := os.Stat(filepath.Join(dir, "net", DropInName)); err != nil || st.Mode() != ownedMode {
		t.Errorf("got %v, %v, want mode 0600", st, err)
	}
	if diff := cmp.Diff(before["10-a.conflist"], string(mustRead(t, filepath.Join(dir, "10-a.conflist")))); diff != "" {
		t.Errorf("primary (-before +after):\n%s", diff)
	}
	for range 2 {
		if _, err := Uninstall(dir); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, contents(t, dir)); diff != "" {
			t.Errorf("uninstalled (-before +after):\n%s", diff)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
			t.Errorf("uninstalled: got %v, %v, want the primary alone", entries, err)
		}
	}
}

func TestInstallDropInBesideOthers(t *testing.T) {
	dir := folder(t, map[string]string{"10-a.conflist": dropList})
	other := filepath.Join(dir, "net", "50-tuning.conf")
	if err := os.Mkdir(filepath.Dir(other), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(other, []byte(`{"type":"tuning"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := mustDropIn(t, dir, true); !slices.Equal(got, []string{"ptp", "tuning", PluginType}) {
		t.Errorf("got the plugins %v, want ours last", got)
	}
	if _, err := Uninstall(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(other); err != nil {
		t.Errorf("another's file: %v", err)
	}
}

func TestInstallDropInFollowsTheNetworksName(t *testing.T) {
	dir := folder(t, map[string]string{"10-a.conflist": dropList})
	mustDropIn(t, dir, true)
	if err := os.WriteFile(filepath.Join(dir, "10-a.conflist"), []byte(flannel), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := mustDropIn(t, dir, true); !slices.Equal(got, []string{"flannel", "portmap", PluginType}) {
		t.Errorf("got the plugins %v", got)
	}
	if _, err := os.Stat(filepath.Join(dir, "net")); !os.IsNotExist(err) {
		t.Errorf("the folder of the network before: %v, want it gone", err)
	}
}

func TestInstallDropInRefusesWhatTakesNone(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"single plugin":    {"10-a.conf": bareText},
		"inlined only":     {"10-a.conflist": `{"name":"net","cniVersion":"1.0.0","loadOnlyInlinedPlugins":true,"plugins":[{"type":"ptp"}]}`},
		"inlined only (2)": {"10-a.conflist": `{"name":"net","cniVersion":"1.0.0","loadOnlyInlinedPlugins":"true","plugins":[{"type":"ptp"}]}`},
		"name with slash":  {"10-a.conflist": `{"name":"../net","cniVersion":"1.0.0","plugins":[{"type":"ptp"}]}`},
		"name of dots":     {"10-a.conflist": `{"name":"..","cniVersion":"1.0.0","plugins":[{"type":"ptp"}]}`},
	} {
		dir := folder(t, files)
		before := contents(t, dir)
		if _, _, err := InstallDropIn(dir, testEntry); !errors.Is(err, ErrNoDropIn) {
			t.Errorf("%s: got %v, want %v", name, err, ErrNoDropIn)
		}
		if diff := cmp.Diff(before, contents(t, dir)); diff != "" {
			t.Errorf("%s: the folder changed (-before +after):\n%s", name, diff)
		}
	}
}

func TestDropInAndListReplaceEachOther(t *testing.T) {
	dir := folder(t, map[string]string{"10-a.conflist": dropList})
	mustInstall(t, dir)
	if got := mustDropIn(t, dir, true); !slices.Equal(got, []string{"ptp", PluginType}) {
		t.Errorf("from list to folder: got %v", got)
	}
	mustInstall(t, dir)
	if _, err := os.Stat(filepath.Join(dir, "net")); !os.IsNotExist(err) {
		t.Errorf("from folder to list: %v, want the folder gone", err)
	}
	mustDropIn(t, dir, true)
	mustOwn(t, dir, true, "ptp")
	if _, err := os.Stat(filepath.Join(dir, "net")); !os.IsNotExist(err) {
		t.Errorf("from folder to own list: %v, want the folder gone", err)
	}
}
