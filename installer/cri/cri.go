// SPDX-License-Identifier: Apache-2.0

// Package cri asks a container runtime where it keeps its CNI plugins and configuration, what it has loaded of them, and
// which sandboxes it has.
package cri

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// timeout bounds one question; a socket that nobody serves fails at once.
const timeout = 2 * time.Second

// Sockets are where runtimes listen, in the order in which they are tried.
var Sockets = []string{
	"/run/containerd/containerd.sock",
	"/run/k3s/containerd/containerd.sock",
	"/run/k0s/containerd.sock",
	"/var/snap/microk8s/common/run/containerd.sock",
	"/run/crio/crio.sock",
	"/run/cri-dockerd.sock",
}

// ErrNotTold is returned by Ask for a runtime that answers, but says nothing of CNI, as CRI-O.
var ErrNotTold = errors.New("the runtime does not say where its CNI configuration is")

// Info is what a runtime says of itself. Paths are those of the runtime's own mount namespace: the node's.
type Info struct {
	Socket        string // that it answered on
	Name, Version string // "containerd", "1.6.20"
	ConfDir       string
	BinDirs       []string
	// Plugins are the types in the chain that the runtime has loaded for pods, in their order; empty: none yet.
	Plugins []string
}

// Ask puts the question to the runtime that listens on socket, a path without scheme.
//
// Returns an error wrapping [ErrNotTold] if it does not know; Name and Version are then set.
func Ask(ctx context.Context, socket string) (Info, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return Info{}, fmt.Errorf("ask runtime at %q: %w", socket, err)
	}
	defer func() { _ = conn.Close() }()
	info, err := ask(ctx, runtime.NewRuntimeServiceClient(conn))
	info.Socket = socket
	if err != nil {
		return info, fmt.Errorf("ask runtime at %q: %w", socket, err)
	}
	return info, nil
}

func ask(ctx context.Context, c runtime.RuntimeServiceClient) (Info, error) {
	v, err := c.Version(ctx, &runtime.VersionRequest{})
	if err != nil {
		return Info{}, err
	}
	info := Info{Name: v.RuntimeName, Version: v.RuntimeVersion}
	s, err := c.Status(ctx, &runtime.StatusRequest{Verbose: true})
	if err != nil {
		return info, err
	}
	return info, info.read(s.Info["cniconfig"])
}

// read takes what containerd has under "cniconfig": the fields of go-cni's ConfigResult.
func (i *Info) read(text string) error {
	var c struct {
		PluginDirs    []string
		PluginConfDir string
		Prefix        string // of the interfaces in pods
		Networks      []struct {
			IFName string
			Config struct {
				Plugins []struct {
					Network struct {
						Type string `json:"type"`
					}
				}
			}
		}
	}
	if text == "" || text == "null" {
		return ErrNotTold
	}
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return fmt.Errorf("%w: cniconfig: %v", ErrNotTold, err)
	}
	if !filepath.IsAbs(c.PluginConfDir) || len(c.PluginDirs) == 0 {
		return fmt.Errorf("%w: conf folder %q, plugin folders %q", ErrNotTold, c.PluginConfDir, c.PluginDirs)
	}
	i.ConfDir, i.BinDirs = c.PluginConfDir, c.PluginDirs
	for _, n := range c.Networks {
		if n.IFName == "lo" { // the runtime's own, not from the folder
			continue
		}
		for _, p := range n.Config.Plugins {
			i.Plugins = append(i.Plugins, p.Network.Type)
		}
	}
	return nil
}
