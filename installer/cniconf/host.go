// SPDX-License-Identifier: Apache-2.0

package cniconf

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containernetworking/cni/libcni"
	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/atomicfile"
)

// ErrNoConfig is returned when a folder holds no valid CNI configuration (yet).
var ErrNoConfig = errors.New("no valid CNI configuration")

// savedSuffix marks a bare configuration that our list stands in for. No runtime reads files with such a name.
const savedSuffix = ".sluice-saved"

// Primary returns the path of the configuration that a runtime uses, or would use without a list that is our own: the
// first valid one by name, as the kubelet and libcni choose.
//
// Returns an error wrapping [ErrNoConfig] if there is none, which says what is wrong with each candidate.
func Primary(dir string) (string, error) {
	entries, err := os.ReadDir(dir) // sorted by name
	if err != nil {
		return "", err
	}
	var reasons []error
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if e.IsDir() || !isConf(path) || e.Name() == OwnedName {
			continue
		}
		if err := usable(path); err != nil {
			reasons = append(reasons, fmt.Errorf("%q: %w", path, err))
			continue
		}
		return path, nil
	}
	return "", errors.Join(fmt.Errorf("%q: %w", dir, ErrNoConfig), errors.Join(reasons...))
}

func isConf(path string) bool {
	switch filepath.Ext(path) {
	case ".conf", ".conflist", ".json":
		return true
	}
	return false
}

// usable asks the parser that runtimes use.
func usable(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if filepath.Ext(path) != ".conflist" {
		_, err = libcni.NetworkPluginConfFromBytes(data)
		return err
	}
	conf, err := libcni.NetworkConfFromBytes(data)
	if err == nil && len(conf.Plugins) == 0 {
		// A list whose plugins are all files in a folder of its name (libcni 1.3). Runtimes before that skip it.
		return errors.New("has no plugins of its own")
	}
	return err
}

// Install puts our entry into the primary configuration of dir and returns the path of the file that now has it.
//
// changed tells whether anything was written. Nothing is if the entry is there already. A list is replaced by rename,
// keeping its mode and owner. A bare configuration X.conf is set aside as X.conf.sluice-saved in favour of a list
// X.conflist; setting aside is the commit point. A list or a file that is our own is taken
// away afterwards.
func Install(dir string, e Entry) (path string, changed bool, err error) {
	unlock, err := lockDir(dir)
	if err != nil {
		return "", false, fmt.Errorf("install: %w", err)
	}
	defer unlock()
	if path, changed, err = install(dir, e); err != nil {
		return "", false, fmt.Errorf("install: %w", err)
	}
	removed, err := removeOwned(dir)
	dropped, derr := removeDropIns(dir, "")
	if err := errors.Join(err, derr); err != nil {
		return "", false, fmt.Errorf("install: %w", err)
	}
	return path, changed || removed || len(dropped) > 0, nil
}

func install(dir string, e Entry) (path string, changed bool, err error) {
	if err := sweep(dir); err != nil {
		return "", false, err
	}
	if path, err = Primary(dir); err != nil {
		return "", false, err
	}
	before, err := os.ReadFile(path)
	if err != nil {
		return "", false, err
	}
	after, err := Insert(before, e)
	if err != nil {
		return "", false, fmt.Errorf("%q: %w", path, err)
	}
	switch {
	case filepath.Ext(path) != ".conflist":
		path, err = supersede(path, after)
		return path, true, err
	case bytes.Equal(before, after):
		return path, false, nil
	}
	return path, true, rewrite(path, path, after)
}

// supersede writes the list that stands in for a bare configuration, then sets that aside.
func supersede(bare string, list []byte) (string, error) {
	path := listFor(bare)
	if have, err := os.ReadFile(path); err == nil && !Contains(have) {
		return "", fmt.Errorf("%q has to become a list, but %q exists: remove one of them", bare, path)
	}
	if err := rewrite(path, bare, list); err != nil {
		return "", err
	}
	if err := os.Rename(bare, bare+savedSuffix); err != nil {
		return "", err
	}
	dir := filepath.Dir(bare)
	if now, err := Primary(dir); err != nil || now != path {
		return "", errors.Join(fmt.Errorf("%q is in place, but the runtime would use %q", path, now), err)
	}
	return path, syncDir(dir)
}

func listFor(bare string) string {
	return strings.TrimSuffix(bare, filepath.Ext(bare)) + ".conflist"
}

// rewrite replaces path, through a symbolic link if it is one, with the mode and the owner of the file like.
func rewrite(path, like string, content []byte) error {
	st, err := os.Stat(like)
	if err != nil {
		return err
	}
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	if err := atomicfile.Write(path, content, st.Mode().Perm()); err != nil {
		return err
	}
	if owner, ok := st.Sys().(*syscall.Stat_t); ok && (int(owner.Uid) != os.Geteuid() || int(owner.Gid) != os.Getegid()) {
		return os.Chown(path, int(owner.Uid), int(owner.Gid))
	}
	return nil
}

// sweep removes what a write that was killed half-way left behind. The caller holds the folder's lock.
func sweep(dir string) error {
	stale, err := filepath.Glob(filepath.Join(dir, atomicfile.TempPrefix+"*"))
	for _, path := range stale {
		err = errors.Join(err, os.RemoveAll(path))
	}
	return err
}

// lockDir keeps two agents from editing a folder at once. The kernel gives the lock back if the process dies.
func lockDir(dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		if err = unix.Flock(int(d.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %q: %w", dir, err), d.Close())
	}
	return func() { _ = d.Close() }, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
