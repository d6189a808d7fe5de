// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"log/slog"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// LeaseName is that of the Lease whose holder looks after the mesh's root.
const LeaseName = "sluice-controlplane"

// ErrDeposed reports that another one has, or may have, taken the lead.
var ErrDeposed = errors.New("the lease is lost: another control plane leads now, or may")

// Lead waits until this process, known to others as identity, holds the Lease, and then runs serve until ctx ends, serve
// returns, or the Lease is lost. Two may lead for a moment when it changes hands. That does no harm: the API lets one of
// them make the root, and the other reads it.
func Lead(ctx context.Context, client kubernetes.Interface, namespace, identity string, log *slog.Logger, serve func(context.Context) error) error {
	term, cancel := context.WithCancel(ctx)
	defer cancel()
	started, result := make(chan struct{}), make(chan error, 1)
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Namespace: namespace, Name: LeaseName},
			Client:     client.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: identity},
		},
		// Those of Kubernetes' own controllers.
		LeaseDuration: 15 * time.Second, RenewDeadline: 10 * time.Second, RetryPeriod: 2 * time.Second,
		ReleaseOnCancel: true, Name: LeaseName,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(ctx context.Context) {
				close(started)
				result <- serve(ctx)
				cancel()
			},
			OnStoppedLeading: func() {},
			OnNewLeader:      func(who string) { log.Info("control plane that leads", "leader", who) },
		},
	})
	if err != nil {
		return err
	}
	elector.Run(term)
	deposed := term.Err() == nil
	cancel()
	select {
	case <-started:
	default:
		return nil // ctx ended before this process led. Should serve begin yet, its context has ended.
	}
	if err := <-result; err != nil || !deposed {
		return err
	}
	return ErrDeposed
}
