// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sluice-mesh/sluice/installer/cniconf"
)

// configPoll is the time between two looks for the primary CNI's configuration while there is none yet.
const configPoll = time.Second

// cniConfig says where the runtime keeps plugins and configuration.
type cniConfig struct {
	BinDir  string
	ConfDir string
	// Plugin is the binary to install; empty means the one beside this program.
	Plugin  string
	Exclude string
}

func (c *cniConfig) declare(fs *flag.FlagSet) {
	c.declareDirs(fs)
	fs.StringVar(&c.Plugin, "plugin", "", "the plugin's binary; default sluice-cni beside this program")
	fs.StringVar(&c.Exclude, "exclude-namespaces", "", "comma-separated namespaces that the plugin lets pass without asking; empty means the plugin's default")
}

func (c *cniConfig) declareDirs(fs *flag.FlagSet) {
	fs.StringVar(&c.BinDir, "cni-bin-dir", "", "the runtime's folder of CNI plugins, /opt/cni/bin on most nodes; empty: the plugin is left alone")
	fs.StringVar(&c.ConfDir, "cni-conf-dir", "", "the runtime's folder of CNI configuration, /etc/cni/net.d on most nodes; empty: configuration is left alone")
}

// validate needs one folder at least if the command is useless without.
func (c *cniConfig) validate(needed bool) error {
	var errs []error
	if needed && c.BinDir == "" && c.ConfDir == "" {
		errs = append(errs, errors.New("--cni-bin-dir, --cni-conf-dir: give at least one"))
	}
	for _, d := range []struct{ name, path string }{{"cni-bin-dir", c.BinDir}, {"cni-conf-dir", c.ConfDir}} {
		if d.path != "" {
			errs = append(errs, absolute(d.name, d.path))
		}
	}
	return errors.Join(errs...)
}

func (c *cniConfig) entry(p *paths) cniconf.Entry {
	e := cniconf.Entry{AgentSocket: p.agentSocket(), PinRoot: p.PinRoot, StateDir: p.StateDir}
	for ns := range strings.SplitSeq(c.Exclude, ",") {
		if ns = strings.TrimSpace(ns); ns != "" {
			e.ExcludeNamespaces = append(e.ExcludeNamespaces, ns)
		}
	}
	return e
}

// installBinary comes before the entry: a runtime that reads the entry must find the plugin.
func (c *cniConfig) installBinary(log *slog.Logger) error {
	if c.BinDir == "" {
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find plugin: %w", err)
	}
	src := cmp.Or(c.Plugin, filepath.Join(filepath.Dir(self), cniconf.PluginType))
	changed, err := cniconf.InstallBinary(src, c.BinDir)
	if err != nil {
		return err
	}
	log.Info("plugin installed", "from", src, "dir", c.BinDir, "changed", changed)
	return nil
}

func (c *cniConfig) installEntry(p *paths, log *slog.Logger) error {
	if c.ConfDir == "" {
		return nil
	}
	path, changed, err := cniconf.Install(c.ConfDir, c.entry(p))
	if err != nil {
		return err
	}
	log.Info("conflist entry installed", "path", path, "changed", changed)
	return nil
}

// installWhenPossible waits for the primary CNI to write its configuration; on a new node it may come after us.
func (c *cniConfig) installWhenPossible(ctx context.Context, p *paths, log *slog.Logger) error {
	if err := c.installBinary(log); err != nil {
		return err
	}
	said := false
	for {
		err := c.installEntry(p, log)
		if !errors.Is(err, cniconf.ErrNoConfig) {
			return err
		}
		if !said {
			log.Info("waiting for a CNI configuration to appear", "dir", c.ConfDir, "err", err)
			said = true
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(configPoll):
		}
	}
}

func installCommand(_ context.Context, args []string, stdout, stderr io.Writer) error {
	var p paths
	var c cniConfig
	fs := newFlagSet("install", stdout)
	p.declare(fs.FlagSet)
	c.declare(fs.FlagSet)
	if err := fs.parse(args, func() error { return errors.Join(p.validate(), c.validate(true)) }); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(stderr, nil))
	if err := c.installBinary(log); err != nil {
		return err
	}
	return c.installEntry(&p, log)
}

// uninstallCommand takes the entry out first, so that no runtime looks for a plugin that is gone. It goes on past
// errors and succeeds when there is nothing to take out.
func uninstallCommand(_ context.Context, args []string, stdout, stderr io.Writer) error {
	var p paths
	var c cniConfig
	fs := newFlagSet("uninstall", stdout)
	p.declare(fs.FlagSet) // Accepted so that one set of flags fits install and uninstall.
	c.declareDirs(fs.FlagSet)
	if err := fs.parse(args, func() error { return errors.Join(p.validate(), c.validate(true)) }); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(stderr, nil))
	if c.ConfDir != "" {
		changed, err := cniconf.Uninstall(c.ConfDir)
		for _, path := range changed {
			log.Info("conflist entry removed", "path", path)
		}
		if err != nil {
			// The plugin stays: entries that could not be taken out still name it.
			return err
		}
		if len(changed) == 0 {
			log.Info("no conflist entry to remove", "dir", c.ConfDir)
		}
	}
	if c.BinDir != "" {
		removed, err := cniconf.RemoveBinary(cniconf.PluginType, c.BinDir)
		if err != nil {
			return err
		}
		if removed {
			log.Info("plugin removed", "dir", c.BinDir)
		} else {
			log.Info("no plugin to remove", "dir", c.BinDir)
		}
	}
	return nil
}
