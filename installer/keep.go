// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/sluice-mesh/sluice/installer/cniconf"
)

const (
	// keepRetry is the time between two tries while something is missing or fails.
	keepRetry = time.Second
	// keepResync is how often the folders are looked at without a reason: it finds what has no event, such as a folder
	// that was replaced as a whole.
	keepResync = 10 * time.Second
	// keepSettle lets a burst of events be one.
	keepSettle = 20 * time.Millisecond
	// keepEvery bounds reinstalls, so that two who overwrite each other do not use up the node.
	keepEvery = time.Second
	// keepWarnAfter so many reinstalls in a row, each within keepCalm of the one before, somebody else owns the folder.
	keepWarnAfter = 5
	keepCalm      = time.Minute
	// leaveTimeout bounds the decision and the removal when the agent ends.
	leaveTimeout = 10 * time.Second
)

// keeper puts plugin and entry on the node and back again whenever another overwrites them.
type keeper struct {
	cfg    *cniConfig
	paths  *paths
	log    *slog.Logger
	report func(installed bool) // called whenever it was tried

	at        *places // nil until found
	reinstall atomic.Uint64
	last      time.Time // of the last reinstall
	inARow    int
	said      string // the last error that was logged
}

func newKeeper(cfg *cniConfig, p *paths, log *slog.Logger, report func(bool)) *keeper {
	return &keeper{cfg: cfg, paths: p, log: log, report: report}
}

// run installs, closes installed once that has worked, and keeps it so until ctx ends; then it leaves the node or not,
// as the configuration says. A node without a CNI configuration gets ours when there is one.
//
// Errors before the first success, other than that there is no configuration, are returned.
func (k *keeper) run(ctx context.Context, installed chan<- struct{}) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch CNI folders: %w", err)
	}
	defer func() { _ = w.Close() }()
	for first := true; ; {
		err := k.round(w, ctx, first)
		switch {
		case err == nil && first:
			close(installed)
			first = false
		case err != nil && first && !waitable(err):
			return err
		}
		if !wait(ctx, w, err != nil) {
			break
		}
	}
	return k.end(ctx)
}

// waitable are errors that time may heal: the primary CNI comes after us, with its folders.
func waitable(err error) bool {
	return errors.Is(err, cniconf.ErrNoConfig) || errors.Is(err, os.ErrNotExist)
}

// round looks once. The watch comes before the look, so that nothing falls between two rounds.
func (k *keeper) round(w *fsnotify.Watcher, ctx context.Context, first bool) error {
	changed, err := k.look(w, ctx)
	k.report(err == nil)
	if err != nil {
		if said := err.Error(); said != k.said && ctx.Err() == nil {
			if errors.Is(err, cniconf.ErrNoConfig) {
				k.log.Info("waiting for a CNI configuration to appear", "err", err)
			} else {
				k.log.Warn("plugin and conflist entry are not in place; trying again", "err", err)
			}
			k.said = said
		}
		return err
	}
	k.said = ""
	if changed && !first {
		k.putBack(ctx)
	}
	return nil
}

func (k *keeper) look(w *fsnotify.Watcher, ctx context.Context) (changed bool, err error) {
	if k.at == nil {
		if k.at, err = k.cfg.locate(ctx); err != nil {
			return false, err
		}
		k.log.Info("CNI folders", "conf", k.at.ConfDir, "bin", k.at.BinDir, "source", k.at.Source)
	}
	for _, dir := range []string{k.at.ConfDir, k.at.BinDir, filepath.Dir(k.at.Entry)} {
		if !filepath.IsAbs(dir) {
			continue
		}
		_ = w.Remove(dir) // it may be another folder of that name by now
		if err := w.Add(dir); err != nil && (dir == k.at.ConfDir || dir == k.at.BinDir) {
			return false, fmt.Errorf("watch %q: %w", dir, err)
		}
	}
	return k.cfg.installInto(ctx, k.at, k.paths, k.log)
}

// putBack counts what look repaired, and lets the next repair wait if there are too many.
func (k *keeper) putBack(ctx context.Context) {
	k.reinstall.Add(1)
	if k.inARow++; time.Since(k.last) > keepCalm {
		k.inARow = 1
	}
	k.last = time.Now()
	k.log.Info("plugin or conflist entry was overwritten and is put back", "times", k.reinstall.Load())
	if k.inARow%keepWarnAfter == 0 {
		k.log.Warn("something on this node keeps overwriting the CNI folders: see whether another CNI owns them (Cilium: cni.exclusive=false), or use --cni-mode owned",
			"conf", k.at.ConfDir, "bin", k.at.BinDir, "times", k.inARow)
	}
	select {
	case <-ctx.Done(): // the caller sees it too
	case <-time.After(keepEvery):
	}
}

// wait returns when there is a reason to look again; false when ctx has ended.
func wait(ctx context.Context, w *fsnotify.Watcher, failed bool) bool {
	after := keepResync
	if failed {
		after = keepRetry
	}
	timer := time.NewTimer(after)
	defer timer.Stop()
	settling := false
	for {
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
			return true
		case <-w.Errors: // an overflow: looking finds what was missed
			return true
		case <-w.Events:
			// Only the first: a folder that is never quiet must not put the look off. After a failure not even that: what a
			// failing look leaves and sweeps is an event too.
			if !settling && !failed {
				timer.Reset(keepSettle)
				settling = true
			}
		}
	}
}

// end takes plugin and entry away if the agent is not to come back.
func (k *keeper) end(ctx context.Context) error {
	k.report(false)
	if k.cfg.Leave == nil || k.at == nil {
		return ctx.Err()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
	defer cancel()
	leave, reason := k.cfg.Leave(ctx)
	if !leave {
		k.log.Info("plugin and conflist entry stay for the next agent", "reason", reason)
		return nil
	}
	k.log.Info("plugin and conflist entry are taken off this node", "reason", reason)
	return k.at.uninstall(k.log)
}
