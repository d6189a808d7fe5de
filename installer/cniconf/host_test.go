// SPDX-License-Identifier: Apache-2.0

package cniconf

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-mesh/sluice/internal/atomicfile"
)

const (
	listText = `{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "ptp"}]}`
	bareText = "{\n  \"cniVersion\": \"1.0.0\",\n  \"name\": \"net\",\n  \"type\": \"ptp\"\n}\n"
)

// folder makes a folder with the given files.
func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// contents reads a folder back.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, e := range entries {
		files[e.Name()] = string(mustRead(t, filepath.Join(dir, e.Name())))
	}
	return files
}

func mustInstall(t *testing.T, dir string) (path string, changed bool) {
	t.Helper()
	path, changed, err := Install(dir, testEntry)
	if err != nil {
		t.Fatal(err)
	}
	if now, err := Primary(dir); err != nil || now != path || !Contains(mustRead(t, now)) {
		t.Fatalf("primary is %q, %v; want %q with our entry", now, err, path)
	}
	return path, changed
}

func TestPrimaryIsTheFirstValidByName(t *testing.T) {
	dir := folder(t, map[string]string{
		".sluice-tmp-05-x.conflist-123": listText,
		"01-broken.conflist":            `{`,
		"02-no-plugins.conflist":        `{"cniVersion": "1.0.0", "name": "x"}`,
		"03-list-in-the-wrong.conf":     listText,
		"04-readme.txt":                 listText,
		"10-first.json":                 bareText,
		"20-second.conflist":            listText,
	})
	if err := os.Mkdir(filepath.Join(dir, "00-folder.conf"), 0o755); err != nil {
		t.Fatal(err)
	}
	got, err := Primary(dir)
	if err != nil || filepath.Base(got) != "10-first.json" {
		t.Errorf("got %q, %v, want 10-first.json", got, err)
	}
}

func TestPrimarySaysWhyThereIsNone(t *testing.T) {
	dir := folder(t, map[string]string{"10-a.conflist": `{"cniVersion": "1.0.0", "plugins": []}`})
	_, err := Primary(dir)
	if !errors.Is(err, ErrNoConfig) || !strings.Contains(err.Error(), "10-a.conflist") || !strings.Contains(err.Error(), "no name") {
		t.Errorf("got %v, want ErrNoConfig naming the file and what it lacks", err)
	}
}

func TestInstallAndUninstallLeaveNoTrace(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"list":            {"10-a.conflist": listText, "99-loopback.conf": `{"cniVersion":"1.0.0","name":"lo","type":"loopback"}`},
		"bare":            {"10-a.conf": bareText, "20-b.conflist": listText},
		"bare, json":      {"10-a.json": bareText},
		"bare, odd lines": {"10-a.conf": "\n\n  " + bareText + "\n"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := folder(t, files)
			before := contents(t, dir)
			if _, changed := mustInstall(t, dir); !changed {
				t.Error("first install: changed is false")
			}
			after := contents(t, dir)
			if _, changed := mustInstall(t, dir); changed {
				t.Error("second install: changed is true")
			}
			if diff := cmp.Diff(after, contents(t, dir)); diff != "" {
				t.Errorf("second install (-first +second):\n%s", diff)
			}
			for range 2 {
				if _, err := Uninstall(dir); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(before, contents(t, dir)); diff != "" {
					t.Errorf("uninstall (-before +after):\n%s", diff)
				}
			}
		})
	}
}

func TestInstallKeepsModeAndOwner(t *testing.T) {
	dir := folder(t, map[string]string{"10-a.conflist": listText})
	path := filepath.Join(dir, "10-a.conflist")
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	gid := os.Getegid()
	if os.Geteuid() == 0 {
		gid = 4242
		if err := os.Chown(path, 0, gid); err != nil {
			t.Fatal(err)
		}
	}
	mustInstall(t, dir)
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := st.Mode().Perm(); got != 0o640 {
		t.Errorf("mode: got %#o, want 0640", got)
	}
	if got := int(st.Sys().(*syscall.Stat_t).Gid); got != gid {
		t.Errorf("group: got %d, want %d", got, gid)
	}
}

func TestInstallFollowsALink(t *testing.T) {
	real := folder(t, map[string]string{"real.conflist": listText})
	dir := t.TempDir()
	link := filepath.Join(dir, "10-a.conflist")
	if err := os.Symlink(filepath.Join(real, "real.conflist"), link); err != nil {
		t.Fatal(err)
	}
	mustInstall(t, dir)
	if st, err := os.Lstat(link); err != nil || st.Mode().Type() != os.ModeSymlink {
		t.Errorf("the link became %v, %v", st.Mode(), err)
	}
	if _, err := Uninstall(dir); err != nil {
		t.Fatal(err)
	}
	if got := string(mustRead(t, filepath.Join(real, "real.conflist"))); got != listText {
		t.Errorf("got %s, want %s", got, listText)
	}
}

func TestUninstallKeepsWhatOthersAddedToTheWrapping(t *testing.T) {
	dir := folder(t, map[string]string{"10-a.conf": bareText})
	path, _ := mustInstall(t, dir)
	edited := strings.Replace(string(mustRead(t, path)), `"plugins": [`, `"plugins": [{"type": "tuning"},`, 1)
	if err := os.WriteFile(path, []byte(edited), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Uninstall(dir); err != nil {
		t.Fatal(err)
	}
	got := contents(t, dir)
	if len(got) != 1 || !strings.Contains(got["10-a.conflist"], `"tuning"`) || strings.Contains(got["10-a.conflist"], PluginType) {
		t.Errorf("got %v, want 10-a.conflist alone, with tuning and without us", got)
	}
}

func TestInstallRefusesToOverwriteAForeignList(t *testing.T) {
	dir := folder(t, map[string]string{"10-a.conf": bareText, "10-a.conflist": listText})
	before := contents(t, dir)
	_, _, err := Install(dir, testEntry)
	if err == nil || !strings.Contains(err.Error(), "10-a.conflist\" exists") {
		t.Errorf("got %v, want an error naming the list that is in the way", err)
	}
	if diff := cmp.Diff(before, contents(t, dir)); diff != "" {
		t.Errorf("the folder changed (-before +after):\n%s", diff)
	}
}

// An install that is killed leaves one of these states. None may change what the runtime uses, other than from without
// to with our entry, and both verbs must cope with each.
func TestKilledHalfWay(t *testing.T) {
	list, err := Insert([]byte(bareText), testEntry)
	if err != nil {
		t.Fatal(err)
	}
	for name, files := range map[string]map[string]string{
		"temporary file of a list": {"10-a.conflist": listText, atomicfile.TempPrefix + "10-a.conflist-1": `{"cniVer`},
		"list beside the bare one": {"10-a.conf": bareText, "10-a.conflist": string(list)},
		"uninstall, bare restored": {"10-a.conf": bareText, "10-a.conflist": string(list)},
		"recreated by its owner":   {"10-a.conf": bareText, "10-a.conflist": string(list), "10-a.conf" + savedSuffix: bareText},
	} {
		t.Run(name, func(t *testing.T) {
			original := "10-a.conflist"
			if _, bare := files["10-a.conf"]; bare {
				original = "10-a.conf"
			}
			dir := folder(t, files)
			if got, err := Primary(dir); err != nil || filepath.Base(got) != original {
				t.Errorf("primary: got %q, %v, want %s", got, err, original)
			}
			want := map[string]string{original: files[original]}
			check := func(what string) {
				if _, err := Uninstall(dir); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want, contents(t, dir)); diff != "" {
					t.Errorf("%s (-want +got):\n%s", what, diff)
				}
			}
			mustInstall(t, dir)
			check("install, uninstall")
			dir = folder(t, files)
			check("uninstall")
		})
	}
}

func TestUninstallWithoutFolder(t *testing.T) {
	if _, err := Uninstall(filepath.Join(t.TempDir(), "gone")); err != nil {
		t.Error(err)
	}
}

func TestUninstallLeavesBrokenFilesAlone(t *testing.T) {
	dir := folder(t, map[string]string{"10-a.conflist": `{"type": "sluice-cni`, "20-b.conflist": listText})
	before := contents(t, dir)
	if _, err := Uninstall(dir); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(before, contents(t, dir)); diff != "" {
		t.Errorf("(-before +after):\n%s", diff)
	}
}

func TestInstallSaysWhichFileIsUnfit(t *testing.T) {
	dir := folder(t, map[string]string{"10-a.conflist": `{"cniVersion": "0.2.0", "name": "x", "plugins": [{"type": "ptp"}]}`})
	_, _, err := Install(dir, testEntry)
	if want := `10-a.conflist": cniVersion "0.2.0": the plugin needs 0.3.1 or newer`; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want one that ends in %q", err, want)
	}
}

func TestInstallBinary(t *testing.T) {
	src := filepath.Join(t.TempDir(), PluginType)
	if err := os.WriteFile(src, []byte("#!/bin/sh\necho one\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	bin := folder(t, map[string]string{atomicfile.TempPrefix + PluginType + "-77": "half"})
	install := func(want bool) {
		t.Helper()
		changed, err := InstallBinary(src, bin)
		if err != nil || changed != want {
			t.Fatalf("got %v, %v, want %v", changed, err, want)
		}
	}
	install(true)
	install(false)
	target := filepath.Join(bin, PluginType)
	if err := os.Chmod(target, 0o700); err != nil {
		t.Fatal(err)
	}
	install(true) // only the mode was wrong
	if out, err := exec.Command(target).Output(); err != nil || string(out) != "one\n" {
		t.Errorf("running it: %q, %v", out, err)
	}
	before, _ := os.Stat(target)
	if err := os.WriteFile(src, []byte("#!/bin/sh\necho two\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	install(true)
	if after, _ := os.Stat(target); os.SameFile(before, after) {
		t.Error("the program was overwritten in place, not replaced")
	}
	if got := contents(t, bin); len(got) != 1 {
		t.Errorf("folder holds %v, want the program alone", got)
	}
	for range 2 {
		if _, err := RemoveBinary(PluginType, bin); err != nil {
			t.Fatal(err)
		}
	}
	if got := contents(t, bin); len(got) != 0 {
		t.Errorf("folder holds %v, want nothing", got)
	}
}

func TestInstallBinaryWithoutSource(t *testing.T) {
	bin := t.TempDir()
	if _, err := InstallBinary("/nonexistent/sluice-cni", bin); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want not exist", err)
	}
	if got := contents(t, bin); len(got) != 0 {
		t.Errorf("folder holds %v, want nothing", got)
	}
}

// A runtime that reads the folder while it is being edited, over and over, must always find a whole configuration.
func TestReadersNeverSeeAPart(t *testing.T) {
	dir := folder(t, map[string]string{"10-a.conflist": listText})
	path := filepath.Join(dir, "10-a.conflist")
	stop := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			data, err := os.ReadFile(path)
			if err == nil {
				_, err = parse(data)
			}
			if err != nil || len(bytes.TrimSpace(data)) == 0 {
				done <- err
				return
			}
		}
	}()
	for range 20 {
		mustInstall(t, dir)
		if _, err := Uninstall(dir); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
}
