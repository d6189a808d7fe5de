// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
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
	// slowRuntime is how long the word of a runtime that does not answer in time is waited for before the folders are
	// guessed.
	slowRuntime = time.Minute
	// askEvery is the time between two questions to the runtime once there are folders. Those that it named may be others
	// after an upgrade or a change of its configuration.
	askEvery = time.Minute
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
	began     time.Time
	located   time.Time // when at was looked for
	left      []*places // those before at, until what is ours is taken out of them
	stuck     []*places // those it could not be taken out of; tried again at the end
	out       bool      // plugin and entry were taken off the node
	reinstall atomic.Uint64
	last      time.Time // of the last reinstall
	inARow    int

	askEvery time.Duration
	said     string // the last error that was logged
}

func newKeeper(cfg *cniConfig, p *paths, log *slog.Logger, report func(bool)) *keeper {
	return &keeper{cfg: cfg, paths: p, log: log, report: report, began: time.Now(), askEvery: askEvery}
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

// waitable are errors that time may heal: the primary CNI comes after us, with its folders, and a busy runtime reads late.
func waitable(err error) bool {
	return errors.Is(err, cniconf.ErrNoConfig) || errors.Is(err, os.ErrNotExist) || errors.Is(err, errNotLoaded)
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
	if err := k.locate(ctx); err != nil {
		return false, err
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
	changed, err = k.cfg.installInto(ctx, k.at, k.paths, k.log)
	if err == nil && len(k.left) > 0 {
		changed = false // nobody overwrote it
		k.tidy()
	}
	return changed, err
}

// tidy takes what is ours out of the folders before these.
func (k *keeper) tidy() {
	for _, left := range k.left {
		rest := left.without(k.at)
		if rest == nil {
			continue
		}
		if err := uninstallAll([]*places{rest}, k.log); err != nil {
			k.log.Warn("plugin and entry stay in the folders of before", "conf", rest.ConfDir, "bin", rest.BinDir, "err", err)
			k.stuck = append(k.stuck, rest)
		}
	}
	k.left = nil
}

// locate finds the folders, or goes from those of before to those that the runtime names by now.
func (k *keeper) locate(ctx context.Context) error {
	now := time.Now()
	if k.at != nil && now.Sub(k.located) < k.askEvery && !k.at.gone() {
		return nil
	}
	at, err := k.cfg.locate(ctx)
	switch {
	case k.at != nil && (err != nil || !k.at.gives(at)):
		k.located = now
		return nil
	case err != nil:
		return err
	case errors.Is(at.Guess, errSlow) && now.Sub(k.began) < slowRuntime:
		return fmt.Errorf("find CNI folders: %w (%w)", cniconf.ErrNoConfig, at.Guess)
	}
	k.log.Info("CNI folders", "conf", at.ConfDir, "bin", at.BinDir, "source", at.Source)
	if at.Guess != nil {
		k.log.Info("no container runtime says where its CNI folders are: they are guessed, and it is asked again and again; --cni-conf-dir and --cni-bin-dir name them", "err", at.Guess)
	}
	if k.at != nil {
		k.left = append(k.left, k.at)
	}
	k.at, k.located = at, now
	return nil
}

// gives tells whether the folders give way to others. A runtime of another version is a reason too: "auto" may be another
// mode there. A second runtime is none while the folders are there, for the one that named them may only be starting again.
func (at *places) gives(to *places) bool {
	switch {
	case to.Guess != nil:
		return at.Guess != nil && at.gone()
	case at.Guess == nil && at.Socket != to.Socket:
		return at.gone()
	}
	return at.Source != to.Source || at.without(to) != nil
}

// gone tells whether a folder is not there any more.
func (at *places) gone() bool {
	for _, dir := range []string{at.ConfDir, at.BinDir} {
		if _, err := os.Stat(dir); dir != "" && errors.Is(err, os.ErrNotExist) {
			return true
		}
	}
	return false
}

// without is what of the folders is not among others, nil if nothing.
func (at *places) without(others *places) *places {
	rest := &places{}
	for _, d := range []struct{ rest, ours, others *string }{
		{&rest.ConfDir, &at.ConfDir, &others.ConfDir}, {&rest.BinDir, &at.BinDir, &others.BinDir},
	} {
		if !sameFolder(*d.ours, *d.others) {
			*d.rest = *d.ours
		}
	}
	if rest.ConfDir == "" && rest.BinDir == "" {
		return nil
	}
	return rest
}

func sameFolder(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return a == b
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
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
	if k.cfg.Leave == nil {
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
	return k.takeOut(ctx)
}

// takeOut takes plugin and entry off the node, if that is not done yet. After an error they may be there still.
func (k *keeper) takeOut(ctx context.Context) (err error) {
	switch {
	case k.out:
		return nil
	case k.cfg.ConfDir == "": // the plugin stays with the entry that names it
		return errors.New("--cni-conf-dir is empty: whoever put in the entry has to take it out")
	}
	at := k.at
	if at == nil {
		if at, err = k.cfg.locate(ctx); err == nil {
			err = at.Guess
		}
		if err != nil { // an agent before this one may have been told
			var errs []error
			for _, p := range k.cfg.anywhere() {
				errs = append(errs, p.takeEntry(k.log)) // and not the plugin, which an entry elsewhere may name
			}
			return errors.Join(fmt.Errorf("the CNI folders are not known: %w", err), errors.Join(errs...))
		}
	}
	err = uninstallAll(slices.Concat(k.stuck, k.left, []*places{at}), k.log)
	k.out = err == nil
	return err
}
