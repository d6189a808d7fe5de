// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// newNamespace makes a namespace that lives only as long as the returned NS: it has no name.
func newNamespace(t *testing.T) *NS {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	type made struct {
		ns  *NS
		err error
	}
	ch := make(chan made)
	go func() {
		runtime.LockOSThread() // Never unlocked: the thread ends with the goroutine.
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			ch <- made{err: err}
			return
		}
		ns, err := Current()
		ch <- made{ns, err}
	}()
	m := <-ch
	if m.err != nil {
		t.Fatal(m.err)
	}
	t.Cleanup(func() { _ = m.ns.Close() })
	return m.ns
}

func mustID(t *testing.T, ns *NS) ID {
	t.Helper()
	id, err := ns.ID()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func currentID(t *testing.T) ID {
	t.Helper()
	ns, err := Current()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ns.Close() }()
	return mustID(t, ns)
}

func TestDoRunsInsideAndComesBack(t *testing.T) {
	ns := newNamespace(t)
	home, want := currentID(t), mustID(t, ns)
	if home == want {
		t.Fatal("the new namespace is the test's own")
	}
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			err := ns.Do(func() error {
				if got := currentID(t); got != want {
					t.Errorf("inside Do: got %v, want %v", got, want)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
			if got := currentID(t); got != home {
				t.Errorf("after Do: got %v, want %v", got, home)
			}
		})
	}
	wg.Wait()
}

func TestDoReturnsTheError(t *testing.T) {
	want := errors.New("boom")
	if got := newNamespace(t).Do(func() error { return want }); !errors.Is(got, want) {
		t.Fatalf("got %v, want %v", got, want)
	}
}

func TestOpenRefusesWhatIsNoNetns(t *testing.T) {
	file := filepath.Join(t.TempDir(), "stale")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, fifo, "/proc/self/ns/uts", t.TempDir()} {
		if _, err := Open(path); !errors.Is(err, ErrNotNetns) {
			t.Errorf("Open(%q): got %v, want %v", path, err, ErrNotNetns)
		}
	}
	if _, err := Open(file + "-missing"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want %v", err, os.ErrNotExist)
	}
}
