// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestBinariesDoNotKnowWhereTheyWereBuilt builds the plugin in the source tree and in a copy of it elsewhere, with the
// Makefile's own command.
func TestBinariesDoNotKnowWhereTheyWereBuilt(t *testing.T) {
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := t.TempDir()
	for _, dir := range []string{"plugin", "bpf", "internal"} {
		if err := os.CopyFS(filepath.Join(elsewhere, dir), os.DirFS(filepath.Join(root, dir))); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"go.mod", "go.sum", "Makefile"} {
		data, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(elsewhere, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(pluginBuiltIn(t, root), pluginBuiltIn(t, elsewhere)) {
		t.Error("builds of the same source in two folders differ")
	}
}

// pluginBuiltIn runs make's build command with another output.
func pluginBuiltIn(t *testing.T, root string) []byte {
	t.Helper()
	cmd := exec.Command("make", "-s", "-C", root, "-n", "build/bin/sluice-cni")
	line, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "sluice-cni")
	cmd = exec.Command("sh", "-c", strings.Replace(string(line), "build/bin/sluice-cni", out, 1))
	cmd.Dir = root
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", line, err, text)
	}
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
