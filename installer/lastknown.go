// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"maps"
	"slices"

	"github.com/sluice-mesh/sluice/installer/controlplane"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

// saveLastKnown writes what the plugin goes by while no agent answers.
func (a *agent) saveLastKnown() error {
	known := a.lastKnown()
	return known.Save(a.cfg.StateDir)
}

// lastKnown is what is known now. Of all namespaces only the API tells.
func (a *agent) lastKnown() nodeapi.LastKnown {
	s := a.catalog.Snapshot()
	l := nodeapi.LastKnown{Namespaces: enrolledNamespaces(s)}
	if a.api != nil {
		l.All = slices.DeleteFunc(slices.Sorted(maps.Keys(s.Namespaces)), func(name string) bool { return !s.Knows(name) })
	}
	return l
}

// followLastKnown keeps the file up to date. A disk that cannot be written is no reason to stop enrolling pods.
func (a *agent) followLastKnown(ctx context.Context) error {
	changes, cancel := a.catalog.Subscribe()
	defer cancel()
	before := a.lastKnown()
	saved := false // Something may have changed between prepare and Subscribe.
	for {
		now := a.lastKnown()
		if !saved || !now.Equal(&before) {
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

// enrolledNamespaces are those in which a pod may be enrolled: by their own labels, or by those of a pod in them.
func enrolledNamespaces(s *controlplane.Snapshot) []string {
	var names []string
	for name, ns := range s.Namespaces {
		if s.Rules.MayPick(name, ns.Labels) {
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
