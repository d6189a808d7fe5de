// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	claimTimeout = 10 * time.Second
	claimPoll    = 50 * time.Millisecond
)

// claimNode makes sure that this is the only agent on the run folder, waiting a little for one that is just ending. The
// claim ends with the process or when the file is closed.
func (a *agent) claimNode(ctx context.Context) (*os.File, error) {
	if err := os.MkdirAll(a.cfg.RunDir, 0o755); err != nil {
		return nil, err
	}
	path := filepath.Join(a.cfg.RunDir, "agent.lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("lock %q: %w", path, err), f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("another agent runs on %q", a.cfg.RunDir), f.Close())
		case <-time.After(claimPoll):
		}
	}
}
