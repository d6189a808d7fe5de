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

// binaryMode is what runtimes expect of a plugin.
const binaryMode = 0o755

// InstallBinary puts a copy of the program at src into the runtime's folder of plugins, under its own name. changed is
// false if the same program was there already.
//
// The copy is made aside and renamed: a runtime executes the old program or the new one, and a plugin that is running
// keeps its file.
func InstallBinary(src, binDir string) (changed bool, err error) {
	program, err := os.ReadFile(src)
	if err != nil {
		return false, fmt.Errorf("install binary: %w", err)
	}
	unlock, err := lockDir(binDir)
	if err != nil {
		return false, fmt.Errorf("install binary: %w", err)
	}
	defer unlock()
	path := filepath.Join(binDir, filepath.Base(src))
	if err := sweep(binDir); err != nil {
		return false, fmt.Errorf("install binary: %w", err)
	}
	if same(path, program) {
		return false, nil
	}
	if err := atomicfile.Write(path, program, binaryMode); err != nil {
		return false, fmt.Errorf("install binary: %w", err)
	}
	return true, nil
}

func same(path string, program []byte) bool {
	st, err := os.Lstat(path)
	if err != nil || st.Mode() != binaryMode { // a regular file with exactly these permissions
		return false
	}
	have, err := os.ReadFile(path)
	return err == nil && bytes.Equal(have, program)
}

// RemoveBinary takes the named program out of the folder of plugins, with what an interrupted InstallBinary left. It
// succeeds if there is nothing; removed tells whether there was the program.
func RemoveBinary(name, binDir string) (removed bool, err error) {
	unlock, err := lockDir(binDir)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("remove binary: %w", err)
	}
	defer unlock()
	err = os.Remove(filepath.Join(binDir, name))
	removed = err == nil
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if err := errors.Join(sweep(binDir), err); err != nil {
		return removed, fmt.Errorf("remove binary: %w", err)
	}
	return removed, nil
}
