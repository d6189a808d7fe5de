// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
)

// pairPorts are the servers' ports that the pairs of proxies stand in front of.
var pairPorts = []int{httpPort, iperfPort, idlePort}

// pairDir holds the configurations and certificates of the pairs.
func (b *bench) pairDir() string { return filepath.Join(b.Dir, "pairs") }

// startPairs starts the proxies that Sluice is compared with.
func (b *bench) startPairs() error {
	if err := os.MkdirAll(b.pairDir(), 0o755); err != nil {
		return err
	}
	if err := writeCertificates(b.pairDir()); err != nil {
		return err
	}
	for name, start := range map[string]func() error{"haproxy": b.startHaproxies, "nginx": b.startNginxPair} {
		if !b.takes(name) {
			continue
		}
		if err := start(); err != nil {
			return fmt.Errorf("pair of %s: %w", name, err)
		}
	}
	return nil
}

// rememberFresh notes what the proxies hold before any traffic.
func (b *bench) rememberFresh() error {
	b.fresh = map[string]int{}
	for _, w := range b.proxied() {
		n, err := b.resident(w.procs)
		if err != nil {
			return err
		}
		b.fresh[w.name] = n
	}
	return nil
}
