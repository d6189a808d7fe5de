// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// sweep waits for the end of its input, then removes what the file notes, and folder.
func sweep(noted, folder string) error {
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	list, err := os.ReadFile(noted)
	if err != nil {
		return err
	}
	var errs []error
	for line := range strings.Lines(string(list)) {
		switch kind, name, _ := strings.Cut(strings.TrimSpace(line), " "); kind {
		case "netns":
			errs = append(errs, removeNetns(filepath.Join("/run/netns", name)))
		case "cgroup":
			errs = append(errs, removeCgroup(name))
		}
	}
	return errors.Join(append(errs, os.RemoveAll(folder))...)
}

func removeNetns(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unmount %q: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// removeCgroup removes a folder of all hierarchies, once its last process is reaped.
func removeCgroup(name string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		var dirs []string
		_ = filepath.WalkDir(filepath.Join(h.point, name), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for _, dir := range slices.Backward(dirs) {
			for end := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
				if err = os.Remove(dir); err == nil || time.Now().After(end) {
					break
				}
			}
		}
	}
	return err
}
