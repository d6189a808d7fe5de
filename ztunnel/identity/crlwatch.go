// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// crlSettle: ambient section 4.1. A folder that is never quiet is read every so often all the same.
	crlSettle = 2 * time.Second
	// crlResync finds what has no event: a folder replaced as a whole, a mount over it, an overflowed queue.
	crlResync = time.Minute
)

// Watch reads the file again after changes of its folder, as a mounted ConfigMap changes by a rename beside the file,
// until ctx ends. A file that cannot be read or parsed is logged, and the last good lists stay.
func (c *CRL) Watch(ctx context.Context) error {
	if c == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	events, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch CRL file: %w", err)
	}
	defer events.Close()
	dir := filepath.Dir(c.path)
	if err := events.Add(dir); err != nil {
		return fmt.Errorf("watch CRL folder %q: %w", dir, err)
	}
	c.reloadOrLog() // what changed before the watch
	return c.follow(ctx, events)
}

func (c *CRL) follow(ctx context.Context, events *fsnotify.Watcher) error {
	resync := time.NewTicker(crlResync)
	defer resync.Stop()
	var settled <-chan time.Time // nil while nothing has changed
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case _, ok := <-events.Events:
			if !ok {
				return errors.New("watch of CRL folder: closed")
			}
			if settled == nil {
				settled = time.After(c.settle)
			}
		case <-events.Errors: // an overflow, say: resync finds what was missed
		case <-settled:
			settled = nil
			c.reloadOrLog()
		case <-resync.C:
			_ = events.Add(filepath.Dir(c.path)) // of a new folder; nothing if it is the same
			c.reloadOrLog()
		}
	}
}

func (c *CRL) reloadOrLog() {
	if err := c.Reload(); err != nil {
		c.log.Error("revocations stay as they were", "error", err)
	}
}
