// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"flag"
	"fmt"
	"path/filepath"
)

// paths are where agent, plugin, ztunnel and command line meet on a node.
type paths struct {
	RunDir   string
	StateDir string
	PinRoot  string
}

func (p *paths) declare(fs *flag.FlagSet) {
	fs.StringVar(&p.RunDir, "run-dir", "/run/sluice", "folder of the sockets agent.sock, ztunnel.sock, controlplane.sock and of the ready marker")
	fs.StringVar(&p.StateDir, "state-dir", "/var/lib/sluice", "folder of what outlives a reboot: the last known enrolment, the CA, the known pods")
	fs.StringVar(&p.PinRoot, "pin-root", "/sys/fs/bpf/sluice/v1", "folder of the pinned maps and programs, on a bpffs")
}

func (p *paths) validate() error {
	return errors.Join(absolute("run-dir", p.RunDir), absolute("state-dir", p.StateDir), absolute("pin-root", p.PinRoot))
}

func absolute(name, path string) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("--%s: %q is not an absolute path", name, path)
	}
	return nil
}

func (p *paths) agentSocket() string        { return filepath.Join(p.RunDir, "agent.sock") }
func (p *paths) ztunnelSocket() string      { return filepath.Join(p.RunDir, "ztunnel.sock") }
func (p *paths) controlPlaneSocket() string { return filepath.Join(p.RunDir, "controlplane.sock") }
