// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// A folder that is replaced as a whole takes its watch along; the one that replaces it must get its own. The periodic
// read, which would hide that, is out of the way here.
func TestWatchMovesToTheFolderThatReplacesAnother(t *testing.T) {
	parent := t.TempDir()
	dir, next := filepath.Join(parent, "watched"), filepath.Join(parent, "next")
	if err := errors.Join(os.Mkdir(dir, 0o755), os.Mkdir(next, 0o755)); err != nil {
		t.Fatal(err)
	}
	w, err := newWatcher(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	w.resync = time.Hour
	marker := filepath.Join(dir, "new")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	found := make(chan struct{}, 1)
	go func() {
		done <- w.run(ctx, func() {
			if _, err := os.Stat(marker); err == nil {
				select {
				case found <- struct{}{}:
				default:
				}
			}
		})
	}()
	defer func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("run: %v", err)
		}
	}()
	if err := unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, next, unix.RENAME_EXCHANGE); err != nil {
		t.Fatal(err)
	}
	testutil.Eventually(t, waitFor, func() error {
		if err := os.WriteFile(marker, nil, 0o644); err != nil {
			return err
		}
		select {
		case <-found:
			return nil
		default:
			return errors.New("a file in the new folder was not noticed")
		}
	})
}
