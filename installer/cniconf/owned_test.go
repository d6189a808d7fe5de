// SPDX-License-Identifier: Apache-2.0

package cniconf

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/google/go-cmp/cmp"
)

// mustOwn installs and wants our own list to be the one that a runtime uses, with the plugins in this order.
func mustOwn(t *testing.T, dir string, changed bool, plugins ...string) {
	t.Helper()
	path, got, err := InstallOwned(dir, testEntry)
	if err != nil || got != changed {
		t.Fatalf("got changed %v, %v, want %v", got, err, changed)
	}
	files, err := libcni.ConfFiles(dir, []string{".conf", ".conflist", ".json"})
	if err != nil || len(files) == 0 {
		t.Fatalf("got %v, %v", files, err)
	}
	if files[0] != path {
		t.Errorf("the runtime uses %q, want %q", files[0], path)
	}
	list, err := libcni.ConfListFromFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var types []string
	for _, p := range list.Plugins {
		types = append(types, p.Network.Type)
	}
	if diff := cmp.Diff(append(plugins, PluginType), types); diff != "" {
		t.Errorf("plugins (-want +got):\n%s", diff)
	}
}

func TestInstallOwnedLeavesThePrimaryAlone(t *testing.T) {
	for name, text := range map[string]string{"10-a.conflist": listText, "10-a.conf": bareText, "00-multus.conf": bareText} {
		t.Run(name, func(t *testing.T) {
			dir := folder(t, map[string]string{name: text, "20-b.conflist": ptp})
			before := contents(t, dir)
			first, err := parse([]byte(text))
			if err != nil {
				t.Fatal(err)
			}
			var kinds []string
			for _, p := range first.plugins {
				kinds = append(kinds, p.kind)
			}
			if first.bare {
				kinds = []string{first.kind}
			}
			mustOwn(t, dir, true, kinds...)
			mustOwn(t, dir, false, kinds...)
			st, err := os.Stat(filepath.Join(dir, OwnedName))
			if err != nil || st.Mode().Perm() != 0o600 {
				t.Errorf("mode: got %v, %v, want 0600", st.Mode(), err)
			}
			after := contents(t, dir)
			delete(after, OwnedName)
			if diff := cmp.Diff(before, after); diff != "" {
				t.Errorf("others' files (-before +after):\n%s", diff)
			}
			if _, err := Uninstall(dir); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, contents(t, dir)); diff != "" {
				t.Errorf("uninstalled (-before +after):\n%s", diff)
			}
		})
	}
}

func TestInstallOwnedFollowsThePrimary(t *testing.T) {
	dir := folder(t, map[string]string{"10-a.conflist": ptp})
	mustOwn(t, dir, true, "ptp")
	if err := os.WriteFile(filepath.Join(dir, "10-a.conflist"), []byte(flannel), 0o644); err != nil {
		t.Fatal(err)
	}
	mustOwn(t, dir, true, "flannel", "portmap")
	if err := os.Remove(filepath.Join(dir, "10-a.conflist")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := InstallOwned(dir, testEntry); !errors.Is(err, ErrNoConfig) {
		t.Errorf("without a primary: got %v, want %v", err, ErrNoConfig)
	}
}

func TestModesReplaceEachOther(t *testing.T) {
	dir := folder(t, map[string]string{"10-a.conf": bareText})
	before := contents(t, dir)
	kind := "bridge"
	if l, err := parse([]byte(bareText)); err == nil {
		kind = l.kind
	}
	mustInstall(t, dir)
	mustOwn(t, dir, true, kind)
	got := contents(t, dir)
	delete(got, OwnedName)
	if diff := cmp.Diff(before, got); diff != "" {
		t.Errorf("from chained to owned (-before +after):\n%s", diff)
	}
	mustInstall(t, dir)
	if _, ok := contents(t, dir)[OwnedName]; ok {
		t.Error("from owned to chained: our own list is still there")
	}
}

func TestInstallOwnedRefusesWhatSortsBefore(t *testing.T) {
	dir := folder(t, map[string]string{"00-.conflist": ptp})
	if _, _, err := InstallOwned(dir, testEntry); err == nil || !strings.Contains(err.Error(), "sorts before") {
		t.Errorf("got %v, want one that says what sorts before", err)
	}
}
