// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// settleTime is how long a folder must be quiet before it is read: a file that is being written is then mostly whole.
	settleTime = 50 * time.Millisecond
	// settleLimit bounds the wait in a folder that is never quiet.
	settleLimit = 500 * time.Millisecond
	// resyncInterval is how often the folders are read without a reason: it finds what has no event (a folder replaced
	// as a whole, a mount over it, an overflowed queue).
	resyncInterval = 10 * time.Second
	// missingInterval is how often a folder that does not exist is looked for.
	missingInterval = time.Second
)

// watcher tells when one of some folders may have changed.
type watcher struct {
	fs     *fsnotify.Watcher
	dirs   []string
	seen   map[string]os.FileInfo // the folder that each watch is on
	resync time.Duration
}

func newWatcher(dirs ...string) (*watcher, error) {
	fs, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch: %w", err)
	}
	w := &watcher{fs: fs, dirs: dirs, seen: map[string]os.FileInfo{}, resync: resyncInterval}
	if err := w.renew(); err != nil {
		return nil, errors.Join(err, fs.Close())
	}
	return w, nil
}

func (w *watcher) close() { _ = w.fs.Close() }

// isMissing reports whether a folder has no watch because it does not exist.
func (w *watcher) isMissing() bool { return len(w.seen) < len(w.dirs) }

// renew puts a watch on each folder that has none, or that is not the folder anymore that the watch was put on. That a
// folder does not exist is for whoever reads it to report.
func (w *watcher) renew() error {
	var errs []error
	for _, dir := range w.dirs {
		st, err := os.Stat(dir)
		// A new folder may have the inode of the one that was removed; the watch is gone all the same.
		if err == nil && slices.Contains(w.fs.WatchList(), dir) && os.SameFile(st, w.seen[dir]) {
			continue
		}
		_ = w.fs.Remove(dir) // ErrNonExistentWatch where there was none
		delete(w.seen, dir)
		if err == nil {
			err = w.fs.Add(dir)
		}
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("watch %q: %w", dir, err))
			continue
		}
		w.seen[dir] = st
	}
	return errors.Join(errs...)
}

// run calls changed after events, once they settle, and every resyncInterval, until ctx ends.
func (w *watcher) run(ctx context.Context, changed func()) error {
	resync := time.NewTicker(w.resync)
	defer resync.Stop()
	missing := time.NewTicker(min(missingInterval, w.resync))
	defer missing.Stop()
	settle := time.NewTimer(0)
	settle.Stop()
	var since time.Time // of the first event not handled yet; zero if there is none
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case _, ok := <-w.fs.Events:
			if !ok {
				return errors.New("watch: closed")
			}
			if since.IsZero() {
				since = time.Now()
			}
			settle.Reset(min(settleTime, time.Until(since.Add(settleLimit))))
		case _, ok := <-w.fs.Errors: // an overflow: the next read finds what was missed
			if !ok {
				return errors.New("watch: closed")
			}
			settle.Reset(0)
		case <-resync.C:
			settle.Reset(0)
		case <-missing.C:
			if w.isMissing() {
				settle.Reset(0)
			}
		case <-settle.C:
			since = time.Time{}
			_ = w.renew() // tried again
			changed()
		}
	}
}
