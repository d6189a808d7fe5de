// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"maps"
	"slices"
	"strings"
	"time"
)

// fadeTime is how long a policy goes on applying where it no longer does by what one type's response says alone.
//
// What a policy applies to is said in two places: its scope, and the lists of the workloads. A control plane sends them
// in two responses, and between these a policy that becomes one for selected workloads, or stops being one, would apply
// to nobody. The two follow each other at once; the time is for large meshes.
const fadeTime = 2 * time.Second

// fading is a policy that still applies to what it applied to a moment ago.
type fading struct {
	policy *Policy // as it was
	until  time.Time
}

// byScope stands for a workload's uid where a policy fades that applied by its scope.
const byScope = ""

// fade keeps p in force for a workload that named it, or byScope. It needs s.mu.
func (s *Store) fade(p *Policy, uid string) {
	if s.fadings[uid] == nil {
		s.fadings[uid] = map[string]fading{}
	}
	s.fadings[uid][p.Key()] = fading{p, time.Now().Add(fadeTime)}
	if !s.fadeTimer {
		s.fadeTimer = true
		time.AfterFunc(fadeTime, s.endFades)
	}
}

// endFades lets go of what faded out, and has connections looked at again: an ALLOW that is gone refuses.
func (s *Store) endFades() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, ended := time.Now(), false
	for uid, list := range s.fadings {
		for key, f := range list {
			if !now.Before(f.until) {
				delete(list, key)
				ended = true
			}
		}
		if len(list) == 0 {
			delete(s.fadings, uid)
		}
	}
	if s.fadeTimer = len(s.fadings) > 0; s.fadeTimer {
		time.AfterFunc(fadeTime/4, s.endFades)
	}
	if ended {
		s.notify(Change{PolicyLists: true})
	}
}

// fadeUnlisted keeps the policies that a workload stops naming, unless they apply to it otherwise.
func (s *Store) fadeUnlisted(old, w *Workload) {
	for _, key := range old.Policies {
		if p := s.policies[key]; p != nil && p.Scope == PolicyWorkload && !slices.Contains(w.Policies, key) {
			s.fade(p, w.UID)
		}
	}
}

// narrows tells whether p applies to fewer by its scope than old.
func (p *Policy) narrows(old *Policy) bool { return p.Scope > old.Scope }

// faded lists the fading policies that apply to w, but for those in list, which say something newer.
func (s *Store) faded(w *Workload, list []*Policy) []*Policy {
	if len(s.fadings) == 0 {
		return nil
	}
	more := map[string]*Policy{}
	for key, f := range s.fadings[byScope] {
		if f.policy.Scope == PolicyGlobal || f.policy.Namespace == w.Namespace {
			more[key] = f.policy
		}
	}
	for key := range s.fadings[w.UID] {
		if p := s.policies[key]; p != nil {
			more[key] = p
		}
	}
	for _, p := range list {
		delete(more, p.Key())
	}
	return slices.SortedFunc(maps.Values(more), func(a, b *Policy) int { return strings.Compare(a.Key(), b.Key()) })
}

// dropFades forgets a policy that was removed: that is said in one place.
func (s *Store) dropFades(key string) {
	for uid, list := range s.fadings {
		delete(list, key)
		if len(list) == 0 {
			delete(s.fadings, uid)
		}
	}
}
