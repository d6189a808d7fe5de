// SPDX-License-Identifier: Apache-2.0

package cniconf

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/sluice-mesh/sluice/internal/atomicfile"
)

// OwnedName is the file that [InstallOwned] writes. It sorts before what others install, even before 00-multus.conf.
const OwnedName = "00-0-sluice.conflist"

// ownedMode is for a file that only the runtime has to read.
const ownedMode = 0o600

// InstallOwned writes a list of our own that sorts first: a copy of the primary configuration with our entry behind it.
// The primary itself is left alone, and found through our own file when it changes: installing again renews the copy.
// An entry of ours that [Install] has put into the primary is taken out.
//
// Returns an error wrapping [ErrNoConfig] as long as there is nothing to copy.
func InstallOwned(dir string, e Entry) (path string, changed bool, err error) {
	unlock, err := lockDir(dir)
	if err != nil {
		return "", false, fmt.Errorf("install: %w", err)
	}
	defer unlock()
	if path, changed, err = installOwned(dir, e); err != nil {
		return "", false, fmt.Errorf("install: %w", err)
	}
	return path, changed, nil
}

func installOwned(dir string, e Entry) (path string, changed bool, err error) {
	if err := sweep(dir); err != nil {
		return "", false, err
	}
	primary, err := Primary(dir)
	if err != nil {
		return "", false, err
	}
	if filepath.Base(primary) < OwnedName {
		return "", false, fmt.Errorf("%q sorts before %s, so the runtime would go on using it: rename it", primary, OwnedName)
	}
	content, err := os.ReadFile(primary)
	if err != nil {
		return "", false, err
	}
	list, err := Insert(content, e)
	if err != nil {
		return "", false, fmt.Errorf("%q: %w", primary, err)
	}
	path = filepath.Join(dir, OwnedName)
	if have, err := os.ReadFile(path); err != nil || !bytes.Equal(have, list) {
		if err := atomicfile.Write(path, list, ownedMode); err != nil {
			return "", false, err
		}
		changed = true
	}
	// Last: until here the runtime had our entry in the one list or the other.
	_, inline := uninstall(primary)
	_, dropped := removeDropIns(dir, "")
	return path, changed, errors.Join(inline, dropped)
}

// removeOwned takes our own list away. It succeeds if there is none.
func removeOwned(dir string) (removed bool, err error) {
	err = os.Remove(filepath.Join(dir, OwnedName))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
