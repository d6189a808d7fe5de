// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"time"

	"github.com/sluice-mesh/sluice/ztunnel/discovery"
	"github.com/sluice-mesh/sluice/ztunnel/telemetry"
)

const (
	evictInterval = time.Minute
	// evictIdle is longer than what scrapes are usually apart, so that the last counts are seen.
	evictIdle = 5 * time.Minute
)

// evictSeries drops what is counted of workloads that are gone, until ctx ends.
func (z *ztunnel) evictSeries(ctx context.Context) {
	tick := time.NewTicker(evictInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			z.metrics.Evict(knownWorkloads(z.store), now.Add(-evictIdle))
		}
	}
}

func knownWorkloads(store *discovery.Store) *telemetry.Known {
	var known telemetry.Known
	for _, w := range store.Workloads() {
		known.Add(telemetry.Peer{
			Workload: w.WorkloadName, Namespace: w.Namespace, Cluster: w.ClusterID,
			CanonicalService: w.CanonicalName, CanonicalRevision: w.CanonicalRevision,
		})
	}
	return &known
}
