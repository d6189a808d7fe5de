// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
)

// CatalogConfig says which folders a Catalog reads.
type CatalogConfig struct {
	// ManifestsDir holds the user's files: Namespaces, Pods, Services and policies. It must exist, unless LastGoodDir has
	// what was in it when it last did.
	ManifestsDir string
	// WorkloadsDir holds one Pod per enrolled pod, written by agents. It is made if missing.
	WorkloadsDir string
	// LastGoodDir is where the last good state of each manifest is kept over restarts. Empty keeps it in memory only.
	LastGoodDir string
	// Logger gets each mistake once per change. Nil means slog.Default.
	Logger *slog.Logger
}

// Catalog is the state of the manifests and workloads folders, kept up to date by [Catalog.Run].
//
// A file that does not parse keeps the last state in which it did; see [Catalog.Errors]. Safe for concurrent use.
type Catalog struct {
	cfg CatalogConfig
	log *slog.Logger

	current atomic.Pointer[Snapshot]

	mu        sync.Mutex // guards what follows
	manifests *folder
	workloads *folder
	reported  map[string]bool // conflicts and folder errors already logged

	subs subscribers
}

// Source is where snapshots come from: the folders of a [Catalog], or an API server.
type Source interface {
	// Snapshot is the present state.
	Snapshot() *Snapshot
	// Subscribe returns a channel that gets a value after each change of Snapshot; changes that come faster than they are
	// read are one value. cancel ends it.
	Subscribe() (changes <-chan struct{}, cancel func())
	// Run keeps the source up to date until ctx ends.
	Run(ctx context.Context) error
}

// NewCatalog reads both folders once. Mistakes in files are no error: see [Catalog.Errors].
func NewCatalog(cfg CatalogConfig) (*Catalog, error) {
	c := &Catalog{cfg: cfg, log: cfg.Logger, reported: map[string]bool{}}
	if c.log == nil {
		c.log = slog.Default()
	}
	if cfg.ManifestsDir == "" || cfg.WorkloadsDir == "" {
		return nil, errors.New("catalog: manifests and workloads folders are both needed")
	}
	if err := os.MkdirAll(cfg.WorkloadsDir, 0o700); err != nil {
		return nil, fmt.Errorf("catalog: workloads folder: %w", err)
	}
	saved, err := newLastGood(cfg.LastGoodDir, c.log)
	if err != nil {
		return nil, fmt.Errorf("catalog: folder of last good manifests: %w", err)
	}
	c.manifests = &folder{dir: cfg.ManifestsDir, files: map[string]*file{}, saved: saved}
	c.workloads = &folder{dir: cfg.WorkloadsDir, files: map[string]*file{}}
	// A folder that cannot be read later keeps its state; one that never could has none, and to go by none would be to
	// take every pod out of the mesh.
	for _, f := range []*folder{c.manifests, c.workloads} {
		if _, err := os.ReadDir(f.dir); err != nil && !f.restore() {
			return nil, fmt.Errorf("catalog: %w (and there is no last good state of it to go by)", err)
		}
	}
	c.Reload()
	return c, nil
}

// Snapshot is the present state.
func (c *Catalog) Snapshot() *Snapshot { return c.current.Load() }

// Errors are the mistakes in the folders as they are now, each a *[FileError].
func (c *Catalog) Errors() []error {
	var errs []error
	for _, e := range c.Snapshot().Errors {
		errs = append(errs, e)
	}
	return errs
}

// Reload reads both folders and publishes what changed before it returns. [Catalog.Run] calls it by itself; a caller
// that has just written a file need not wait for that.
func (c *Catalog) Reload() {
	c.mu.Lock()
	defer c.mu.Unlock()
	changed := c.current.Load() == nil
	for _, f := range []*folder{c.manifests, c.workloads} {
		before := f.err
		files, removed := f.scan()
		for _, file := range files {
			c.report(file)
		}
		changed = changed || len(files)+removed > 0 || (before == nil) != (f.err == nil)
	}
	if !changed {
		return
	}
	s := snapshot(c.manifests, c.workloads)
	c.current.Store(s)
	c.reportConflictsLocked(s)
	c.subs.tell()
}

// report logs what is wrong with a file whose content is new.
func (c *Catalog) report(f *file) {
	if f.err != nil {
		c.log.Error("manifest does not parse; what it said before stays in force", "file", f.err.Origin.String(), "error", f.err.Err,
			"objects_in_force", f.objs.count())
	}
	if f.err == nil {
		for _, w := range f.objs.warnings {
			c.log.Warn("manifest is not carried out as written", "file", w.Origin.String(), "warning", w.Err)
		}
	}
}

// reportConflictsLocked logs the mistakes that no single file shows, each once as long as it lasts.
func (c *Catalog) reportConflictsLocked(s *Snapshot) {
	now := map[string]bool{}
	for _, e := range s.Errors {
		if c.isFileErrorLocked(e) {
			continue
		}
		now[e.Error()] = true
		if !c.reported[e.Error()] {
			c.log.Error("manifests folder", "file", e.Origin.String(), "error", e.Err)
		}
	}
	c.reported = now
}

func (c *Catalog) isFileErrorLocked(e *FileError) bool {
	for _, folder := range []*folder{c.manifests, c.workloads} {
		for _, f := range folder.files {
			if f.err == e {
				return true
			}
		}
	}
	return false
}

// Subscribe implements [Source].
func (c *Catalog) Subscribe() (changes <-chan struct{}, cancel func()) { return c.subs.add() }

// Run keeps the catalog up to date until ctx ends.
func (c *Catalog) Run(ctx context.Context) error {
	w, err := newWatcher(c.cfg.ManifestsDir, c.cfg.WorkloadsDir)
	if err != nil {
		return fmt.Errorf("catalog: %w", err)
	}
	defer w.close()
	// What changed between the first read and the watch has no event.
	c.Reload()
	return w.run(ctx, c.Reload)
}
