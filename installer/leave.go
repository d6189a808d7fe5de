// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/sluice-mesh/sluice/installer/kube"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

// clearTimeout bounds what an agent does that leaves its node for good. Kubernetes gives it 30 s.
const clearTimeout = 20 * time.Second

// leaver decides, once, whether the agent that ends takes everything off the node.
type leaver struct {
	own  *kube.Own // nil: it never does
	once sync.Once

	leaves bool
	reason string
}

func (l *leaver) decide(ctx context.Context) (leaves bool, reason string) {
	l.once.Do(func() {
		if l.own == nil {
			l.reason = "the agent is no DaemonSet's that it knows of"
			return
		}
		l.leaves, l.reason = l.own.Leaving(ctx)
	})
	return l.leaves, l.reason
}

// watchOwn has the agent leave the node when its DaemonSet is deleted. Without that, or if it cannot be told, all stays.
func (a *agent) watchOwn(ctx context.Context) {
	if a.api == nil || a.cfg.source.DaemonSet == "" {
		return
	}
	own, err := kube.WatchOwn(ctx, a.api.node, a.cfg.cni.OwnNamespace, a.cfg.source.DaemonSet)
	if err != nil {
		a.log.Warn("it will not be noticed when the mesh is uninstalled: run \"sluice-installer uninstall\" on the node then", "err", err)
		return
	}
	a.leaver.own = own
}

// clear takes the CNI entry off the node, all its pods out of the mesh, and then what the agent keeps, if it is not to come back.
// Call it when all else has ended.
func (a *agent) clear(ctx context.Context) (left bool, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), clearTimeout)
	defer cancel()
	leaves, reason := a.leaver.decide(ctx)
	if !leaves {
		return false, nil
	}
	a.log.Info("the mesh is taken off this node", "reason", reason)
	keep := ""
	if stays := a.keeper.takeOut(ctx); stays != nil {
		keep = nodeapi.LastKnownFile
		err = errors.Join(stays, a.letPass(stays)) // first of all: what follows may take longer than the agent has
	}
	err = errors.Join(err, a.enroller.LeaveAll(ctx))
	if e := a.api.reporter.Retract(ctx); e != nil { // whoever deletes all at once leaves no right to
		a.log.Warn("annotations of pods stay", "err", e)
	}
	err = errors.Join(err, a.node.Unload(), empty(a.cfg.RunDir, ""), empty(a.cfg.StateDir, keep))
	return true, err
}

// letPass leaves word for a plugin that stays, and would refuse every pod for want of an agent that does not come again:
// nobody is in the mesh, and no agent is to be waited for.
func (a *agent) letPass(stays error) error {
	a.log.Error("the CNI entry may still be on this node: new pods start outside the mesh. Run \"sluice-installer uninstall --cni-conf-dir auto --cni-bin-dir auto\" on the node, and then empty its state folder",
		"state", a.cfg.StateDir, "err", stays)
	nobody := nodeapi.LastKnown{Left: true}
	return nobody.Save(a.cfg.StateDir)
}

// empty removes what is in a folder, but for the file to keep. The folder may be a mount.
func empty(dir, keep string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if e.Name() != keep {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	return err
}
