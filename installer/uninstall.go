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
		return uninstallAll(c.anywhere(), log) // the primary CNI may have gone before us
	}
	if err != nil {
		return err
	}
	return uninstallAll([]*places{at}, log)
}

// anywhere are all known folders.
func (c *cniConfig) anywhere() (all []*places) {
	for _, l := range cniconf.Layouts() {
		at := &places{ConfDir: c.ConfDir, BinDir: c.BinDir}
		if at.ConfDir == auto {
			at.ConfDir, _ = cniconf.Under(c.HostRoot, l.ConfDir)
		}
		if at.BinDir == auto {
			at.BinDir, _ = cniconf.Under(c.HostRoot, l.BinDir)
		}
		all = append(all, at)
	}
	return all
}

// uninstallAll takes the entries out of all folders, and then the plugins, so that no runtime looks for a plugin that is
// gone. If an entry could not be taken out all plugins stay: it names one of them.
func uninstallAll(all []*places, log *slog.Logger) error {
	var errs []error
	for _, at := range all {
		errs = append(errs, at.takeEntry(log))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for _, at := range all {
		errs = append(errs, at.takePlugin(log))
	}
	return errors.Join(errs...)
}

func (at *places) takeEntry(log *slog.Logger) error {
	if at.ConfDir == "" {
		return nil
	}
	changed, err := cniconf.Uninstall(at.ConfDir)
	for _, path := range changed {
		log.Info("conflist entry removed", "path", path)
	}
	if err == nil && len(changed) == 0 {
		log.Info("no conflist entry to remove", "dir", at.ConfDir)
	}
	return err
}

func (at *places) takePlugin(log *slog.Logger) error {
	if at.BinDir == "" {
		return nil
	}
	removed, err := cniconf.RemoveBinary(cniconf.PluginType, at.BinDir)
	switch {
	case err != nil:
	case removed:
		log.Info("plugin removed", "dir", at.BinDir)
	default:
		log.Info("no plugin to remove", "dir", at.BinDir)
	}
	return err
}
