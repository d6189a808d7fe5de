// SPDX-License-Identifier: Apache-2.0

package cniconf

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Uninstall takes our entry out of every configuration in dir, and puts back the bare ones that [Install] had set aside.
// It returns the configurations that had our entry.
//
// It goes on past errors and returns all of them. Nothing of ours being there, or no folder at all, is success.
func Uninstall(dir string) (changed []string, err error) {
	unlock, err := lockDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("uninstall: %w", err)
	}
	defer unlock()
	changed, err = removeDropIns(dir, "")
	errs := []error{sweep(dir), err}
	entries, err := os.ReadDir(dir)
	errs = append(errs, err)
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if !e.IsDir() && isConf(path) {
			had, err := uninstall(path)
			if had && err == nil {
				changed = append(changed, path)
			}
			errs = append(errs, err)
		}
	}
	if err := errors.Join(append(errs, syncDir(dir))...); err != nil {
		return changed, fmt.Errorf("uninstall: %w", err)
	}
	return changed, nil
}

// uninstall reports whether the file has our entry, or had it.
func uninstall(path string) (had bool, err error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) || err == nil && !Contains(data) {
		return false, nil // also what does not parse: it is not ours to judge
	}
	if err != nil {
		return false, err
	}
	if filepath.Base(path) == OwnedName {
		return true, os.Remove(path) // the copy of a list that is there itself
	}
	return true, takeOut(path, data)
}

func takeOut(path string, data []byte) error {
	rest, err := Remove(data)
	if errors.Is(err, ErrOnlyEntry) {
		return os.Remove(path) // an empty list would be invalid, and one with a plugin that is gone is worse
	}
	if err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	for _, ext := range []string{".conf", ".json"} {
		bare := path[:len(path)-len(filepath.Ext(path))] + ext
		if restored, err := restore(path, bare, rest); restored || err != nil {
			return err
		}
	}
	return rewrite(path, path, rest)
}

// restore undoes supersede, or what was done of it: if rest is nothing but the bare configuration in the wrapping we gave
// it, that one comes back and the list goes. If someone has edited the list since, the list stays and the copy goes.
func restore(path, bare string, rest []byte) (bool, error) {
	saved := bare + savedSuffix
	original, err := os.ReadFile(bare)
	inPlace := err == nil
	if !inPlace {
		if original, err = os.ReadFile(saved); err != nil {
			return false, nil // path was a list from the beginning
		}
	}
	if l, err := parse(original); err == nil && l.bare {
		if wrapped, _, err := l.wrap(); err == nil && bytes.Equal(wrapped, rest) {
			if !inPlace {
				err = os.Rename(saved, bare)
			}
			if err == nil {
				err = os.Remove(path)
			}
			return true, errors.Join(err, removeIfThere(saved))
		}
	}
	return false, removeIfThere(saved)
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
