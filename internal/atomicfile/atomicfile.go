// SPDX-License-Identifier: Apache-2.0

// Package atomicfile replaces files so that a reader, or a machine that loses power, sees the old or the new content
// and never a part of one.
package atomicfile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// TempPrefix starts the name of every temporary file of this package, so that watchers can ignore them and whoever owns
// the folder can clean up after a crash.
const TempPrefix = ".sluice-tmp-"

// Write replaces path by a file with the given content and mode.
//
// The temporary file is made in path's own folder; the rename is the commit point. On error path is untouched and
// nothing is left behind.
func Write(path string, content []byte, mode os.FileMode) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, TempPrefix+filepath.Base(path)+"-*")
	if err != nil {
		return fmt.Errorf("write %q: %w", path, err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %q: %w", path, err)
			_ = os.Remove(f.Name())
		}
	}()
	_, werr := f.Write(content)
	// CreateTemp's mode is 0600 and subject to no umask here: set exactly what was asked for.
	if err := errors.Join(werr, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

// syncDir makes the rename itself durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
