// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/sluice-mesh/sluice/internal/atomicfile"
)

// lastGood keeps a copy of every manifest that parsed, so that a policy does not vanish because the agent restarts while
// its file is broken. All methods accept a nil receiver, which keeps nothing.
type lastGood struct {
	dir string
	log *slog.Logger
}

// newLastGood returns nil for an empty dir.
func newLastGood(dir string, log *slog.Logger) (*lastGood, error) {
	if dir == "" {
		return nil, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return &lastGood{dir: dir, log: log}, nil
}

// keep is best effort: without the copy the file itself is still in force.
func (g *lastGood) keep(name string, data []byte) {
	if g == nil {
		return
	}
	path := filepath.Join(g.dir, name)
	if err := atomicfile.Write(path, data, 0o600); err != nil {
		g.log.Warn("cannot keep a copy of the manifest for after a restart", "file", name, "error", err)
	}
}

// prune removes the copies of files that are gone.
func (g *lastGood) prune(present map[string]bool) {
	if g == nil {
		return
	}
	entries, err := os.ReadDir(g.dir)
	for _, e := range entries {
		if !present[e.Name()] {
			err = errors.Join(err, os.Remove(filepath.Join(g.dir, e.Name())))
		}
	}
	if err != nil {
		g.log.Warn("cannot remove the copies of removed manifests", "error", err)
	}
}

// restore parses the copy as if it stood at path. Without a usable copy there are no objects.
func (g *lastGood) restore(name, path string) *objects {
	if g == nil {
		return &objects{}
	}
	data, err := os.ReadFile(filepath.Join(g.dir, name))
	if err != nil {
		return &objects{}
	}
	objs, ferr := parseFile(path, data)
	if ferr != nil {
		g.log.Warn("the kept copy of a broken manifest does not parse either", "file", name, "error", ferr)
		return &objects{}
	}
	g.log.Info("manifest cannot be used: its last good state is restored from before the restart", "file", path)
	return objs
}

// all is the content of every copy, by the name of the file.
func (g *lastGood) all() map[string][]byte {
	if g == nil {
		return nil
	}
	entries, err := os.ReadDir(g.dir)
	all := map[string][]byte{}
	for _, e := range entries {
		if !wanted(e.Name()) {
			continue
		}
		data, rerr := os.ReadFile(filepath.Join(g.dir, e.Name()))
		if rerr == nil {
			all[e.Name()] = data
		}
		err = errors.Join(err, rerr)
	}
	if err != nil {
		g.log.Warn("cannot read the copies of manifests", "error", err)
	}
	return all
}
