// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"slices"

	"github.com/sluice-mesh/sluice/installer/controlplane"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

// saveLastKnown writes what the plugin goes by while no agent answers.
func (a *agent) saveLastKnown() error {
	known := nodeapi.LastKnown{Namespaces: enrolledNamespaces(a.catalog.Snapshot())}
	return known.Save(a.cfg.StateDir)
}

// followLastKnown keeps the file up to date. A disk that cannot be written is no reason to stop enrolling pods.
func (a *agent) followLastKnown(ctx context.Context) error {
	changes, cancel := a.catalog.Subscribe()
	defer cancel()
	before := enrolledNamespaces(a.catalog.Snapshot())
	saved := false // Something may have changed between prepare and Subscribe.
	for {
		now := enrolledNamespaces(a.catalog.Snapshot())
		if !saved || !slices.Equal(before, now) {
			err := a.saveLastKnown()
			if err != nil {
				a.log.Error("last known enrolment not saved", "err", err)
			}
			saved, before = err == nil, now
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changes:
		}
	}
}

// enrolledNamespaces are those in which a pod may be enrolled: by their own label, or by that of a pod in them.
func enrolledNamespaces(s *controlplane.Snapshot) []string {
	var names []string
	for name := range s.Namespaces {
		if ok, _ := s.Enrolled(name, ""); ok {
			names = append(names, name)
		}
	}
	for pod := range s.Pods {
		if ok, _ := s.Enrolled(pod.Namespace, pod.Name); ok {
			names = append(names, pod.Namespace)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}
