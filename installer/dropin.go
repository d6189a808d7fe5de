// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/sluice-mesh/sluice/installer/cniconf"
)

const (
	// loadTimeout is how long a runtime may take to read its configuration again. It takes a tenth of that.
	loadTimeout = 3 * time.Second
	loadPoll    = 100 * time.Millisecond
)

// errNotLoaded reports that the runtime has not read the entry in the network's folder, or not yet.
var errNotLoaded = errors.New("the runtime has not read it")

// chooseMode finds out what "auto" is on this node: the network's folder if the runtime is seen to read it, else the list.
// A node whose list has our entry keeps it there, for between two ways a pod could slip through.
func (c *cniConfig) chooseMode(ctx context.Context, at *places, p *paths, log *slog.Logger) (string, error) {
	if !c.runtimeReads(ctx, at.ConfDir) {
		return modeChained, nil
	}
	primary, err := cniconf.Primary(at.ConfDir)
	if err != nil {
		return "", err
	}
	list, err := os.ReadFile(primary)
	if err != nil || cniconf.Contains(list) {
		return modeChained, err
	}
	path, _, err := cniconf.InstallDropIn(at.ConfDir, c.entry(p))
	if errors.Is(err, cniconf.ErrNoDropIn) {
		return modeChained, nil
	}
	if err != nil {
		return "", err
	}
	if err := c.waitLoaded(ctx); err != nil {
		log.Info("the runtime does not read the network's folder", "err", err)
		_, err := cniconf.RemoveDropIn(at.ConfDir)
		return modeChained, err
	}
	at.Loaded = path
	log.Info("the runtime reads the network's folder")
	return modeDropIn, nil
}

// runtimeReads tells whether a runtime answers that uses this folder.
func (c *cniConfig) runtimeReads(ctx context.Context, dir string) bool {
	info, err := c.askRuntime(ctx)
	if err != nil {
		return false
	}
	theirs, err := cniconf.Under(c.HostRoot, info.ConfDir)
	if err != nil {
		return false
	}
	a, err := os.Stat(theirs)
	if err != nil {
		return false
	}
	b, err := os.Stat(dir)
	return err == nil && os.SameFile(a, b)
}

// seeLoaded returns an error if the runtime has not read the entry in the network's folder. Without this word a runtime that
// does not read the folder would let all pods pass. It asks until the answer is yes: that the file is there, from an earlier
// try or an earlier agent, says nothing.
//
// The file stays after an error. A runtime that is only slow has it at the next try, and one that never reads it takes no
// harm.
func (c *cniConfig) seeLoaded(ctx context.Context, at *places) error {
	if at.Loaded == at.Entry || !c.runtimeReads(ctx, at.ConfDir) {
		return nil
	}
	if err := c.waitLoaded(ctx); err != nil {
		return fmt.Errorf("%q: %w: %w", at.Entry, errNotLoaded, err)
	}
	at.Loaded = at.Entry
	return nil
}

// waitLoaded waits until the runtime has our plugin in its chain.
func (c *cniConfig) waitLoaded(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	var chain []string
	for {
		info, err := c.askRuntime(ctx)
		if err == nil {
			chain = info.Plugins
		}
		if slices.Contains(chain, cniconf.PluginType) {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("after %v its chain is %v", loadTimeout, chain), err)
		case <-time.After(loadPoll):
		}
	}
}
