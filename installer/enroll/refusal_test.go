// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
)

// told keeps the last refusal that a user is to read, by pod.
type told struct {
	mu  sync.Mutex
	say map[string]string
}

func (s *told) refused(namespace, name, _, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.say[namespace+"/"+name] = reason
}

func (s *told) of(name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.say["mesh/"+name]
}

// TestEveryRefusalIsTold has each step of an ADD fail; docs/INSTALL.md lists what is told.
func TestEveryRefusalIsTold(t *testing.T) {
	heard := &told{say: map[string]string{}}
	l := newLab(t, func(c *Config) {
		c.Refused = heard.refused
		c.Await = func(_ context.Context, _, name, _ string) error {
			if name == "unasked" {
				return errors.New("the API does not answer")
			}
			return nil
		}
	})
	for name, tt := range map[string]struct {
		spoil func(s *sandbox)
		want  string
	}{
		"unasked":     {nil, "nothing is known of this one"},
		"addressless": {func(s *sandbox) { s.api.Interfaces[0].Addresses = nil }, "the pod has no address"},
		"annotated": {func(s *sandbox) {
			l.manifest("annotated", "apiVersion: v1\nkind: Pod\nmetadata:\n  name: annotated\n  namespace: mesh\n  annotations: {sluice.dev/capture: some}\n")
		}, "annotation sluice.dev/capture"},
		"unseen":    {func(s *sandbox) { s.api.Netns += "-elsewhere" }, "the agent must see the runtime's namespace folder"},
		"unproxied": {nil, "no ztunnel"},
	} {
		s := l.pod("mesh", name)
		if tt.spoil != nil {
			tt.spoil(s)
		}
		err := s.add()
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(heard.of(name), tt.want) {
			t.Errorf("%s: ADD returns %v, the user is told %q; want %q in both", name, err, heard.of(name), tt.want)
		}
	}
	l.must(os.RemoveAll(l.e.recordsDir()))
	l.must(os.WriteFile(l.e.recordsDir(), nil, 0o600)) // as a disk that cannot be written
	if err := l.pod("mesh", "unrecorded").add(); err == nil || !strings.Contains(heard.of("unrecorded"), "remember pod") {
		t.Errorf("without records: ADD returns %v, the user is told %q", err, heard.of("unrecorded"))
	}
	l.must(os.Remove(l.e.recordsDir()))
	l.must(os.Mkdir(l.e.recordsDir(), 0o700))
}
