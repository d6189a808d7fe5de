// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
)

// MissingPolicies returns the policies that workloads of a node name and nobody published, with the uids of those
// workloads, sorted. Ambient section 6.1 has such names skipped, so connections are decided without them.
func (s *Store) MissingPolicies(node string) map[string][]string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	missing := map[string][]string{}
	for uid, w := range s.workloads {
		if w.Node != node {
			continue
		}
		for _, key := range w.Policies {
			if s.policies[key] == nil {
				missing[key] = append(missing[key], uid)
			}
		}
	}
	for _, uids := range missing {
		slices.Sort(uids)
	}
	return missing
}

// maxMissingNamed bounds the lists of one log line.
const maxMissingNamed = 10

// missingLog logs the policies that this node's workloads are without, once for each change of what is missing.
type missingLog struct {
	node string
	log  *slog.Logger
	last map[string][]string
	// pending is what changed since the last report.
	pending Change
}

func (l *missingLog) note(c Change) { l.pending = l.pending.or(c) }

// report is for when all types were answered: before that, what seems missing may be on its way.
func (l *missingLog) report(s *Store) {
	c := l.pending
	l.pending = Change{}
	// A workload that leaves takes its names along, which is a change of addresses only.
	if !c.Policies && !c.PolicyLists && (!c.Addresses || len(l.last) == 0) {
		return
	}
	now := s.MissingPolicies(l.node)
	if maps.EqualFunc(now, l.last, slices.Equal[[]string]) {
		return
	}
	l.last = now
	if len(now) == 0 {
		l.log.Info("all policies that workloads of this node name are known again")
		return
	}
	policies := sortedKeys(now, strings.Compare)
	workloads := slices.Compact(slices.Sorted(slices.Values(slices.Concat(slices.Collect(maps.Values(now))...))))
	l.log.Warn("workloads of this node name policies that are unknown; connections are decided without them",
		"policies", bounded(policies), "workloads", bounded(workloads))
}

// bounded joins the first few of a list and counts the others.
func bounded(list []string) string {
	if more := len(list) - maxMissingNamed; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(list[:maxMissingNamed], ", "), more)
	}
	return strings.Join(list, ", ")
}
