// SPDX-License-Identifier: Apache-2.0

package cniconf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Layout is where a kind of node keeps CNI configuration and plugins. Paths are the node's own.
type Layout struct {
	Name    string
	ConfDir string
	BinDir  string
}

// layouts are the places that are tried when the runtime does not tell its own. The usual ones come last: nodes that keep
// their files elsewhere often have a leftover there.
var layouts = []Layout{
	{"OpenShift", "/etc/kubernetes/cni/net.d", "/var/lib/cni/bin"},
	{"K3s", "/var/lib/rancher/k3s/agent/etc/cni/net.d", "/var/lib/rancher/k3s/data/cni"},
	{"K3s before 1.29", "/var/lib/rancher/k3s/agent/etc/cni/net.d", "/var/lib/rancher/k3s/data/current/bin"},
	{"MicroK8s", "/var/snap/microk8s/current/args/cni-network", "/var/snap/microk8s/current/opt/cni/bin"},
	{"GKE", "/etc/cni/net.d", "/home/kubernetes/bin"},
	{"usual", "/etc/cni/net.d", "/opt/cni/bin"},
	{"CRI-O's own", "/etc/cni/net.d", "/usr/libexec/cni"},
}

// Layouts are the known ones, in the order in which they are tried.
func Layouts() []Layout { return slices.Clone(layouts) }

// FindLayout returns the first of the known layouts under root whose two folders exist and hold a valid configuration
// and a plugin. root is where the node's root file system is seen, "/" or a mount of it.
//
// Returns an error wrapping [ErrNoConfig] if there is none (yet).
func FindLayout(root string) (Layout, error) {
	var reasons []error
	for _, l := range layouts {
		if err := l.fits(root); err != nil {
			reasons = append(reasons, fmt.Errorf("%s: %w", l.Name, err))
			continue
		}
		return l, nil
	}
	return Layout{}, fmt.Errorf("%w in the usual folders below %q: %w", ErrNoConfig, root, errors.Join(reasons...))
}

func (l Layout) fits(root string) error {
	conf, err := Under(root, l.ConfDir)
	if err != nil {
		return err
	}
	bin, err := Under(root, l.BinDir)
	if err != nil {
		return err
	}
	path, err := Primary(conf)
	if err != nil {
		return err
	}
	return hasPluginOf(path, bin)
}

// hasPluginOf tells whether bin holds the first plugin of a configuration: two kinds of nodes may share the one folder
// and not the other.
func hasPluginOf(conf, bin string) error {
	data, err := os.ReadFile(conf)
	if err != nil {
		return err
	}
	l, err := parse(data)
	if err != nil {
		return err
	}
	kind := l.kind
	if !l.bare && len(l.plugins) > 0 {
		kind = l.plugins[0].kind
	}
	if _, err := os.Lstat(filepath.Join(bin, kind)); err != nil {
		return fmt.Errorf("%q wants the plugin %q: %w", conf, kind, err)
	}
	return nil
}

// maxLinks is where the kernel gives up too.
const maxLinks = 40

// Under returns the place of a node's path below root, symbolic links followed as the node would follow them: one to an
// absolute path begins at root again. The path must exist.
func Under(root, path string) (string, error) {
	done, rest := "", strings.Split(filepath.Clean(path), "/")
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			done = filepath.Dir(done)
			continue
		}
		st, err := os.Lstat(filepath.Join(root, done, name))
		if err != nil {
			return "", err
		}
		if st.Mode().Type() != os.ModeSymlink {
			done = filepath.Join(done, name)
			continue
		}
		if links++; links > maxLinks {
			return "", fmt.Errorf("%q: too many symbolic links", path)
		}
		target, err := os.Readlink(filepath.Join(root, done, name))
		if err != nil {
			return "", err
		}
		if filepath.IsAbs(target) {
			done = ""
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return filepath.Join(root, done), nil
}
