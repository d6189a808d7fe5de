// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"testing"
)

func TestCreateNamedLeavesThisProcessWhereItWas(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	before, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for range 20 { // any of them may run on the process's first thread
		name := "sl-named-" + rand.Text()[:6]
		path, err := CreateNamed(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := CreateNamed(name); !errors.Is(err, fs.ErrExist) {
			t.Errorf("create again: got %v, want it to exist", err)
		}
		ns, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		_ = ns.Close()
		for range 2 {
			if err := RemoveNamed(name); err != nil {
				t.Errorf("remove: %v", err)
			}
		}
		after, err := os.Readlink("/proc/self/ns/net")
		if err != nil || after != before {
			t.Fatalf("this process is in %q, %v, want %q", after, err, before)
		}
	}
}
