// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"io"
	"log/slog"

	"github.com/sluice-mesh/sluice/installer/cniconf"
)

// uninstallCommand takes entry and plugin off the node. It succeeds when there is nothing to take out.
func uninstallCommand(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var p paths
	var c cniConfig
	fs := newFlagSet("uninstall", stdout)
	p.declare(fs.FlagSet) // Accepted so that one set of flags fits install and uninstall.
	c.declareDirs(fs.FlagSet)
	if err := fs.parse(args, func() error { return errors.Join(p.validate(), c.validate(true)) }); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(stderr, nil))
	at, err := c.locate(ctx)
	if errors.Is(err, cniconf.ErrNoConfig) {
		return c.uninstallAnywhere(log) // the primary CNI may have gone before us
	}
	if err != nil {
		return err
	}
	return at.uninstall(log)
}

// uninstallAnywhere takes entry and plugin out of all known folders that exist.
func (c *cniConfig) uninstallAnywhere(log *slog.Logger) error {
	var errs []error
	for _, l := range cniconf.Layouts() {
		at := &places{ConfDir: c.ConfDir, BinDir: c.BinDir}
		if at.ConfDir == auto {
			at.ConfDir, _ = cniconf.Under(c.HostRoot, l.ConfDir)
		}
		if at.BinDir == auto {
			at.BinDir, _ = cniconf.Under(c.HostRoot, l.BinDir)
		}
		errs = append(errs, at.uninstall(log))
	}
	return errors.Join(errs...)
}

// uninstall takes the entry out first, so that no runtime looks for a plugin that is gone.
func (at *places) uninstall(log *slog.Logger) error {
	if at.ConfDir != "" {
		changed, err := cniconf.Uninstall(at.ConfDir)
		for _, path := range changed {
			log.Info("conflist entry removed", "path", path)
		}
		if err != nil {
			// The plugin stays: entries that could not be taken out still name it.
			return err
		}
		if len(changed) == 0 {
			log.Info("no conflist entry to remove", "dir", at.ConfDir)
		}
	}
	if at.BinDir != "" {
		removed, err := cniconf.RemoveBinary(cniconf.PluginType, at.BinDir)
		if err != nil {
			return err
		}
		if removed {
			log.Info("plugin removed", "dir", at.BinDir)
		} else {
			log.Info("no plugin to remove", "dir", at.BinDir)
		}
	}
	return nil
}
