// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sluice-mesh/sluice/installer/cniconf"
	"github.com/sluice-mesh/sluice/installer/cri"
)

// auto has a folder found by itself.
const auto = "auto"

// places are the folders of the container runtime as this process sees them; an empty one is left alone.
type places struct {
	ConfDir, BinDir string
	Source          string // who named them
	Socket          string // of the runtime that did; empty if none
	Guess           error  // why no runtime did, if they are those of a known layout; [errSlow] if one may yet
	Mode            string // what "auto" was found to be; empty until then
	Entry           string // the file that has our entry
	Loaded          string // Entry, once the runtime is seen to have read it from the network's folder
}

// errSlow reports a runtime that is there and does not answer in time, as on a node that has just started.
var errSlow = errors.New("the runtime does not answer in time")

// locate returns the folders that were given, and finds out those that are "auto": the runtime's own word, or else the
// first of the known layouts that holds a configuration.
//
// Returns an error wrapping [cniconf.ErrNoConfig] if no runtime tells and there is none yet.
func (c *cniConfig) locate(ctx context.Context) (*places, error) {
	at := &places{ConfDir: c.ConfDir, BinDir: c.BinDir, Source: "flags"}
	if c.ConfDir != auto && c.BinDir != auto {
		return at, nil
	}
	found, err := c.find(ctx)
	if err != nil {
		return nil, fmt.Errorf("find CNI folders: %w", err)
	}
	at.Source, at.Socket, at.Guess = found.Source, found.Socket, found.Guess
	for _, d := range []struct {
		given *string
		found string
	}{{&at.ConfDir, found.ConfDir}, {&at.BinDir, found.BinDir}} {
		if *d.given != auto {
			continue
		}
		// A folder that is missing may come; until then there is no configuration in it.
		if *d.given, err = cniconf.Under(c.HostRoot, d.found); err != nil {
			return nil, fmt.Errorf("%s says %q: %w (%w)", at.Source, d.found, cniconf.ErrNoConfig, err)
		}
	}
	return at, nil
}

// find returns the folders with the node's own paths.
func (c *cniConfig) find(ctx context.Context) (places, error) {
	info, runtimeErr := c.askRuntime(ctx)
	if runtimeErr == nil {
		return places{ConfDir: info.ConfDir, BinDir: c.binDirOf(info), Source: info.Name + " " + info.Version, Socket: info.Socket}, nil
	}
	if c.CRISocket != "" && !errors.Is(runtimeErr, cri.ErrNotTold) {
		return places{}, fmt.Errorf("%w (%w)", cniconf.ErrNoConfig, runtimeErr) // it may not run yet
	}
	layout, err := cniconf.FindLayout(c.HostRoot)
	if err != nil {
		return places{}, errors.Join(runtimeErr, err)
	}
	return places{ConfDir: layout.ConfDir, BinDir: layout.BinDir, Source: "layout " + layout.Name, Guess: runtimeErr}, nil
}

// binDirOf is the first of the runtime's folders that exists.
func (c *cniConfig) binDirOf(info cri.Info) string {
	for _, dir := range info.BinDirs {
		if _, err := cniconf.Under(c.HostRoot, dir); err == nil {
			return dir
		}
	}
	return info.BinDirs[0]
}

// askRuntime asks the socket that was given, or else the usual ones until a runtime tells.
func (c *cniConfig) askRuntime(ctx context.Context) (info cri.Info, err error) {
	if c.CRISocket != "" {
		return cri.Ask(ctx, c.CRISocket)
	}
	errs := []error{errors.New("no container runtime tells")}
	for _, path := range c.sockets() {
		if info, err = cri.Ask(ctx, path); err == nil {
			return info, nil
		}
		if status.Code(err) == codes.DeadlineExceeded {
			err = fmt.Errorf("%w: %w", errSlow, err)
		}
		errs = append(errs, err)
	}
	return cri.Info{}, errors.Join(errs...)
}

// sockets are the runtimes' that may serve: the one that was given, or else those of the usual ones that are there.
func (c *cniConfig) sockets() (all []string) {
	if c.CRISocket != "" {
		return []string{c.CRISocket}
	}
	for _, path := range cri.Sockets {
		path = filepath.Join(c.HostRoot, path)
		if _, err := os.Stat(path); err == nil {
			all = append(all, path)
		}
	}
	return all
}
