// SPDX-License-Identifier: Apache-2.0

package cniconf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/sluice-mesh/sluice/internal/atomicfile"
)

// DropInName is our file in the folder of a network. libcni 1.3 appends the plugins of NAME/*.conf, in the order of their
// names, to those of the list whose network has that name.
const DropInName = "99-sluice.conf"

// ErrNoDropIn is returned for a primary configuration that takes no plugins from a folder.
var ErrNoDropIn = errors.New("takes no plugins from a folder")

// InstallDropIn puts our entry into a file of its own, in the folder of the primary configuration's network. The primary is
// left alone, so that its owner may rewrite it. An entry of ours from another way of installing is taken out.
//
// Only a runtime with libcni 1.3 or newer reads the folder: ask it whether it did. Returns errors wrapping [ErrNoConfig] and
// [ErrNoDropIn].
func InstallDropIn(dir string, e Entry) (path string, changed bool, err error) {
	unlock, err := lockDir(dir)
	if err != nil {
		return "", false, fmt.Errorf("install: %w", err)
	}
	defer unlock()
	if path, changed, err = installDropIn(dir, e); err != nil {
		return "", false, fmt.Errorf("install: %w", err)
	}
	return path, changed, nil
}

func installDropIn(dir string, e Entry) (path string, changed bool, err error) {
	if err := sweep(dir); err != nil {
		return "", false, err
	}
	primary, err := Primary(dir)
	if err != nil {
		return "", false, err
	}
	folder, err := dropInFolder(primary)
	if err != nil {
		return "", false, fmt.Errorf("%q: %w", primary, err)
	}
	entry, err := e.marshal()
	if err != nil {
		return "", false, err
	}
	path = filepath.Join(folder, DropInName)
	if have, err := os.ReadFile(path); err != nil || !bytes.Equal(have, entry) {
		if err := putDropIn(path, entry); err != nil {
			return "", false, err
		}
		changed = true
	}
	// Last: until here the runtime had our entry in one place or the other.
	_, inline := uninstall(primary)
	_, owned := removeOwned(dir)
	_, stale := removeDropIns(dir, path)
	return path, changed, errors.Join(inline, owned, stale)
}

// dropInFolder is the folder of a list's network.
func dropInFolder(primary string) (string, error) {
	data, err := os.ReadFile(primary)
	if err != nil {
		return "", err
	}
	l, err := parse(data)
	if err != nil {
		return "", err
	}
	var c struct {
		Only any `json:"loadOnlyInlinedPlugins"` // libcni also takes it as a string
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return "", err
	}
	switch {
	case l.bare:
		return "", fmt.Errorf("%w: it is no list", ErrNoDropIn)
	case c.Only != nil && c.Only != false && c.Only != "false":
		return "", fmt.Errorf("%w: loadOnlyInlinedPlugins is set", ErrNoDropIn)
	case l.name != filepath.Base(l.name) || l.name == "." || l.name == "..":
		return "", fmt.Errorf("%w: its name %q is no name of a folder", ErrNoDropIn, l.name)
	}
	return filepath.Join(filepath.Dir(primary), l.name), l.chainable()
}

// putDropIn writes the file and has the runtime look: runtimes watch the folder above only, so a rename has to happen there.
func putDropIn(path string, entry []byte) error {
	folder := filepath.Dir(path)
	dir := filepath.Dir(folder)
	if _, err := os.Stat(folder); err == nil {
		if err := atomicfile.Write(path, entry, ownedMode); err != nil {
			return err
		}
		return nudge(dir)
	}
	aside, err := os.MkdirTemp(dir, atomicfile.TempPrefix)
	if err != nil {
		return err
	}
	err = errors.Join(os.Chmod(aside, 0o755), atomicfile.Write(filepath.Join(aside, DropInName), entry, ownedMode))
	if err == nil {
		err = os.Rename(aside, folder)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(aside))
	}
	return syncDir(dir)
}

// nudge makes runtimes read dir again.
func nudge(dir string) error {
	f, err := os.CreateTemp(dir, atomicfile.TempPrefix)
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// RemoveDropIn takes our file out of every network's folder, and with it folders that are empty then.
func RemoveDropIn(dir string) (removed []string, err error) {
	unlock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	return removeDropIns(dir, "")
}

// removeDropIns keeps the one file that is in use.
func removeDropIns(dir, keep string) (removed []string, err error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*", DropInName))
	errs := []error{err}
	for _, path := range paths {
		if path == keep {
			continue
		}
		if err := os.Remove(path); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, path)
		_ = os.Remove(filepath.Dir(path)) // fails if others have files there
	}
	if len(removed) > 0 {
		errs = append(errs, nudge(dir))
	}
	return removed, errors.Join(errs...)
}
