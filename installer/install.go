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
	"slices"
	"strings"

	"github.com/sluice-mesh/sluice/installer/cniconf"
)

// How our entry gets to be used.
const (
	modeChained = "chained" // in the primary configuration
	modeOwned   = "owned"   // in a copy of it that sorts first
	modeDropIn  = "dropin"  // in the folder of its network
)

// defaultNamespace is one that the plugin excludes by itself, as it does kube-system.
const defaultNamespace = "sluice-system"

// cniConfig says where the runtime keeps plugins and configuration.
type cniConfig struct {
	BinDir  string
	ConfDir string
	Mode    string
	// CRISocket is asked for folders that are "auto"; empty means the usual ones.
	CRISocket string
	// HostRoot is where the node's root file system is seen; folders that are found, not given, are below it.
	HostRoot string
	// OwnNamespace is the agent's own, whose pods the plugin never delays.
	OwnNamespace string
	// Plugin is the binary to install; empty means the one beside this program.
	Plugin  string
	Exclude string
	// Leave decides when the agent ends whether plugin and entry go with it. Nil keeps them, which is right for an upgrade:
	// new pods of the mesh wait for the next agent.
	Leave func(context.Context) (leave bool, reason string)
}

func (c *cniConfig) declare(fs *flag.FlagSet) {
	c.declareDirs(fs)
	fs.StringVar(&c.Plugin, "plugin", "", "the plugin's binary; default sluice-cni beside this program")
	fs.StringVar(&c.Mode, "cni-mode", auto, "\"chained\" adds our entry to the primary CNI configuration; \"dropin\" puts it into a file in the folder of its network, which runtimes with libcni 1.3 read; \"owned\" writes a copy with our entry that sorts first; \"auto\" is dropin if the runtime is seen to read the folder, else chained")
	fs.StringVar(&c.OwnNamespace, "own-namespace", os.Getenv("POD_NAMESPACE"), "namespace of Sluice's own pods, which the plugin lets pass without asking; default $POD_NAMESPACE")
	fs.StringVar(&c.Exclude, "exclude-namespaces", "", "comma-separated namespaces whose pods neither wait for the agent nor are in the mesh, besides kube-system and the agent's own")
}

func (c *cniConfig) declareDirs(fs *flag.FlagSet) {
	fs.StringVar(&c.BinDir, "cni-bin-dir", "", "the runtime's folder of CNI plugins; \"auto\": the one that the runtime names, else the usual one that exists; empty: the plugin is left alone")
	fs.StringVar(&c.ConfDir, "cni-conf-dir", "", "the runtime's folder of CNI configuration, or \"auto\" as above; empty: configuration is left alone")
	fs.StringVar(&c.CRISocket, "cri-socket", "", "socket of the container runtime that is asked for \"auto\" folders; default the usual ones")
	fs.StringVar(&c.HostRoot, "host-root", "/", "where the node's root file system is mounted; \"auto\" folders and the usual sockets are looked for below it")
}

// validate needs one folder at least if the command is useless without.
func (c *cniConfig) validate(needed bool) error {
	var errs []error
	if needed && c.BinDir == "" && c.ConfDir == "" {
		errs = append(errs, errors.New("--cni-bin-dir, --cni-conf-dir: give at least one"))
	}
	for _, d := range []struct{ name, path string }{{"cni-bin-dir", c.BinDir}, {"cni-conf-dir", c.ConfDir}} {
		if d.path != "" && d.path != auto {
			errs = append(errs, absolute(d.name, d.path))
		}
	}
	if c.CRISocket != "" {
		errs = append(errs, absolute("cri-socket", c.CRISocket))
	}
	if modes := []string{auto, modeChained, modeDropIn, modeOwned}; c.Mode != "" && !slices.Contains(modes, c.Mode) {
		errs = append(errs, fmt.Errorf("--cni-mode: %q is none of %s", c.Mode, strings.Join(modes, ", ")))
	}
	return errors.Join(append(errs, absolute("host-root", c.HostRoot))...)
}

func (c *cniConfig) entry(p *paths) cniconf.Entry {
	e := cniconf.Entry{AgentSocket: p.agentSocket(), PinRoot: p.PinRoot, StateDir: p.StateDir}
	if all := c.excluded(); len(all) > 2 || all[1] != defaultNamespace { // else the plugin's default
		e.ExcludeNamespaces = all
	}
	return e
}

// excluded are the namespaces whose pods neither wait for an agent nor are in the mesh: the cluster's own, the agent's own,
// and those given besides.
func (c *cniConfig) excluded() []string {
	all := []string{"kube-system", cmp.Or(strings.TrimSpace(c.OwnNamespace), defaultNamespace)}
	for _, ns := range strings.FieldsFunc(c.Exclude, func(r rune) bool { return r == ',' || r == ' ' }) {
		if !slices.Contains(all, ns) {
			all = append(all, ns)
		}
	}
	return all
}

// installInto puts plugin and entry into place. The plugin comes first: a runtime that reads the entry must find it.
func (c *cniConfig) installInto(ctx context.Context, at *places, p *paths, log *slog.Logger) (changed bool, err error) {
	plugin, err := c.installBinary(at, log)
	if err != nil {
		return false, err
	}
	entry, err := c.installEntry(ctx, at, p, log)
	return plugin || entry, err
}

func (c *cniConfig) installBinary(at *places, log *slog.Logger) (changed bool, err error) {
	if at.BinDir == "" {
		return false, nil
	}
	self, err := os.Executable()
	if err != nil {
		return false, fmt.Errorf("find plugin: %w", err)
	}
	src := cmp.Or(c.Plugin, filepath.Join(filepath.Dir(self), cniconf.PluginType))
	if _, err := os.Stat(src); err != nil {
		return false, fmt.Errorf("find plugin: %v", err) // not to be waited for, as for the runtime's folders
	}
	if changed, err = cniconf.InstallBinary(src, at.BinDir); changed {
		log.Info("plugin installed", "from", src, "dir", at.BinDir)
	}
	return changed, err
}

func (c *cniConfig) installEntry(ctx context.Context, at *places, p *paths, log *slog.Logger) (changed bool, err error) {
	if at.ConfDir == "" {
		return false, nil
	}
	mode := c.Mode
	if mode == auto && at.Mode == "" {
		if at.Mode, err = c.chooseMode(ctx, at, p, log); err != nil {
			return false, err
		}
	}
	if mode == auto {
		mode = at.Mode
	}
	install := cniconf.Install
	switch mode {
	case modeOwned:
		install = cniconf.InstallOwned
	case modeDropIn:
		install = cniconf.InstallDropIn
	}
	at.Entry, changed, err = install(at.ConfDir, c.entry(p))
	if errors.Is(err, cniconf.ErrNoDropIn) {
		at.Mode = "" // the primary is another now: choose again
	}
	if changed {
		log.Info("conflist entry installed", "path", at.Entry, "mode", mode)
	}
	if changed || err != nil {
		at.Loaded = ""
	}
	if err == nil && mode == modeDropIn {
		err = c.seeLoaded(ctx, at)
	}
	return changed, err
}

func installCommand(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var p paths
	var c cniConfig
	fs := newFlagSet("install", stdout)
	p.declare(fs.FlagSet)
	c.declare(fs.FlagSet)
	if err := fs.parse(args, func() error { return errors.Join(p.validate(), c.validate(true)) }); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(stderr, nil))
	at, err := c.locate(ctx)
	if err != nil {
		return err
	}
	changed, err := c.installInto(ctx, at, &p, log)
	if err == nil && !changed {
		log.Info("plugin and conflist entry are in place already", "bin", at.BinDir, "conf", at.ConfDir)
	}
	return err
}
