// SPDX-License-Identifier: Apache-2.0

package cniconf

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var testEntry = Entry{AgentSocket: "/run/sluice/agent.sock", PinRoot: "/sys/fs/bpf/sluice/v1", StateDir: "/var/lib/sluice"}

// golden compares got with a file, or writes it with -update.
func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (run with -update to make it)", err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

func inputs(t *testing.T, dir string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*.in.conf*"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no inputs in %q: %v", dir, err)
	}
	return paths
}

func mustRead(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func stem(path string) string { return path[:strings.LastIndex(path, ".in.")] }

func TestInsertAddsOurEntryAndTouchesNothingElse(t *testing.T) {
	for _, path := range inputs(t, "testdata") {
		t.Run(filepath.Base(stem(path)), func(t *testing.T) {
			got, err := Insert(mustRead(t, path), testEntry)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, stem(path)+".want.conflist", got)
			conf, err := libcni.NetworkConfFromBytes(got)
			if err != nil {
				t.Fatalf("libcni does not take it: %v", err)
			}
			ours := 0
			for _, p := range conf.Plugins {
				if p.Network.Type == PluginType {
					ours++
				}
			}
			if ours != 1 {
				t.Errorf("got %d entries of ours, want 1", ours)
			}
		})
	}
}

func TestInsertIsIdempotent(t *testing.T) {
	for _, path := range inputs(t, "testdata") {
		once, err := Insert(mustRead(t, path), testEntry)
		if err != nil {
			t.Fatal(err)
		}
		twice, err := Insert(once, testEntry)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if diff := cmp.Diff(string(once), string(twice)); diff != "" {
			t.Errorf("%s (-once +twice):\n%s", path, diff)
		}
	}
}

func TestInsertThenRemoveRestoresEveryByte(t *testing.T) {
	for _, path := range inputs(t, "testdata") {
		before := mustRead(t, path)
		if Contains(before) || filepath.Ext(path) == ".conf" {
			continue
		}
		with, err := Insert(before, testEntry)
		if err != nil {
			t.Fatal(err)
		}
		after, err := Remove(with)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if !bytes.Equal(before, after) {
			t.Errorf("%s: got\n%s\nwant\n%s", path, after, before)
		}
	}
}

func TestInsertKeepsLineEndings(t *testing.T) {
	got, err := Insert(bytes.ReplaceAll(mustRead(t, "testdata/bridge.in.conflist"), []byte("\n"), []byte("\r\n")), testEntry)
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.ReplaceAll(mustRead(t, "testdata/bridge.want.conflist"), []byte("\n"), []byte("\r\n"))
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestRemoveTakesOutEveryEntryOfOurs(t *testing.T) {
	for _, name := range []string{"duplicated", "outdated-in-the-middle", "same"} {
		got, err := Remove(mustRead(t, "testdata/"+name+".in.conflist"))
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "testdata/"+name+".removed.conflist", got)
	}
}

func TestRemoveLeavesAForeignListAlone(t *testing.T) {
	before := mustRead(t, "testdata/numbers.in.conflist")
	after, err := Remove(before)
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("got %q, %v, want the input", after, err)
	}
}

func TestRemoveKeepsAListFromBecomingEmpty(t *testing.T) {
	_, err := Remove([]byte(`{"cniVersion": "1.0.0", "name": "x", "plugins": [{"type": "sluice-cni"}]}`))
	if !errors.Is(err, ErrOnlyEntry) {
		t.Errorf("got %v, want %v", err, ErrOnlyEntry)
	}
}

func TestInsertSaysWhatIsWrong(t *testing.T) {
	for _, path := range inputs(t, "testdata/invalid") {
		t.Run(filepath.Base(stem(path)), func(t *testing.T) {
			got, err := Insert(mustRead(t, path), testEntry)
			if err == nil {
				t.Fatalf("got %s, want an error", got)
			}
			golden(t, stem(path)+".want.error", []byte(err.Error()+"\n"))
		})
	}
}

// FuzzInsertRemove checks, for whatever Insert accepts, that libcni reads the result with our entry in it, that
// inserting again changes nothing, and that removing restores the input.
func FuzzInsertRemove(f *testing.F) {
	for _, pattern := range []string{"testdata/*.in.conf*", "testdata/invalid/*.in.conf*"} {
		paths, _ := filepath.Glob(pattern)
		for _, path := range paths {
			f.Add(mustRead(f, path))
		}
	}
	f.Fuzz(func(t *testing.T, before []byte) {
		with, err := Insert(before, testEntry)
		if err != nil {
			return
		}
		again, err := Insert(with, testEntry)
		if err != nil || !bytes.Equal(with, again) {
			t.Fatalf("inserted again: %v, got\n%s\nwant\n%s", err, again, with)
		}
		after, err := Remove(with)
		if errors.Is(err, ErrOnlyEntry) {
			return
		}
		if err != nil {
			t.Fatalf("remove: %v from\n%s", err, with)
		}
		if l, _ := parse(before); !l.bare && len(l.ours()) == 0 && !bytes.Equal(before, after) {
			t.Fatalf("got\n%s\nwant\n%s", after, before)
		}
		var top struct{ Plugins []struct{ Type string } }
		if err := json.Unmarshal(with, &top); err != nil || len(top.Plugins) == 0 {
			t.Fatalf("result is no list: %v\n%s", err, with)
		}
	})
}
