// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-mesh/sluice/internal/testutil"
	"github.com/sluice-mesh/sluice/ztunnel/discovery"
	"github.com/sluice-mesh/sluice/ztunnel/telemetry"
)

// fakeSet records what happens to it, in order.
type fakeSet struct {
	mu     sync.Mutex
	addrs  map[netip.Addr]bool
	events []string
	fail   error
	stale  bool // an agent replaced it
	asked  bool // whether it is
}

func (s *fakeSet) note(event string, addrs ...netip.Addr) {
	for _, a := range slices.SortedFunc(slices.Values(addrs), netip.Addr.Compare) {
		event += " " + a.String()
	}
	s.events = append(s.events, event)
}

func (s *fakeSet) Add(addrs ...netip.Addr) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.note("add", addrs...)
	for _, a := range addrs {
		s.addrs[a] = true
	}
	return s.fail
}

func (s *fakeSet) Remove(addrs ...netip.Addr) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.note("remove", addrs...)
	for _, a := range addrs {
		delete(s.addrs, a)
	}
	return s.fail
}

func (s *fakeSet) List() ([]netip.Addr, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.addrs)), s.fail
}

func (s *fakeSet) SetComplete(complete bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	event := "incomplete"
	if complete {
		event = "complete"
	}
	s.note(event)
	return s.fail
}

func (s *fakeSet) IsCurrent() (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = true
	return !s.stale, s.fail
}

func (s *fakeSet) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.note("close")
	return nil
}

// history returns the events so far and forgets them.
func (s *fakeSet) history() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := strings.Join(s.events, ", ")
	s.events = nil
	return h
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func newDestinations(t *testing.T, want *discovery.CaptureSet, present ...string) (*destinations, *fakeSet) {
	set := &fakeSet{addrs: map[netip.Addr]bool{}}
	for _, a := range addrs(present...) {
		set.addrs[a] = true
	}
	levels, err := telemetry.ParseLevels("off")
	if err != nil {
		t.Fatal(err)
	}
	return &destinations{
		set: set, want: func() discovery.CaptureSet { return *want }, size: prometheus.NewGauge(prometheus.GaugeOpts{}),
		log: telemetry.NewLogger(t.Output(), telemetry.Text, levels),
	}, set
}

func TestDestinationsAreCompleteOnlyWhenWhole(t *testing.T) {
	want := discovery.CaptureSet{Addrs: addrs("10.0.0.1", "10.0.0.2"), Complete: true}
	d, set := newDestinations(t, &want, "10.0.0.2", "10.0.0.9")
	step := func(name, history string) {
		t.Helper()
		if err := d.sync(); err != nil && set.fail == nil {
			t.Fatal(err)
		}
		if got := set.history(); got != history {
			t.Errorf("%s: got %q, want %q", name, got, history)
		}
	}
	step("first pass", "add 10.0.0.1, remove 10.0.0.9, complete")
	step("nothing new", "add, remove")
	want.Addrs = addrs("10.0.0.2", "10.0.0.3")
	step("a change", "add 10.0.0.3, remove 10.0.0.1")
	want.Complete = false
	step("a service with a range", "incomplete, add, remove")
	want.Complete = true
	step("it is gone", "add, remove, complete")
}

func TestDestinationsAreReadAgainAfterAnError(t *testing.T) {
	want := discovery.CaptureSet{Addrs: addrs("10.0.0.1"), Complete: true}
	d, set := newDestinations(t, &want)
	d.retry = time.Millisecond
	set.fail = errors.New("map is full")
	store := discovery.NewStore()
	go d.run(t.Context(), store.Subscribe())
	testutil.Eventually(t, 20*time.Second, func() error {
		set.mu.Lock()
		defer set.mu.Unlock()
		if slices.Contains(set.events, "complete") {
			t.Fatal("complete in spite of the error")
		}
		set.fail = nil
		set.addrs[netip.MustParseAddr("10.0.0.9")] = true
		return nil
	})
	testutil.Eventually(t, 20*time.Second, func() error {
		set.mu.Lock()
		defer set.mu.Unlock()
		if !slices.Contains(set.events, "complete") || !maps.Equal(set.addrs, map[netip.Addr]bool{netip.MustParseAddr("10.0.0.1"): true}) {
			return errors.New("the set is not right yet")
		}
		return nil
	})
}

func TestDestinationsConvergeWithAnotherWriter(t *testing.T) {
	want := discovery.CaptureSet{Addrs: addrs("10.0.0.1"), Complete: true}
	d, set := newDestinations(t, &want)
	d.audit = time.Millisecond
	go d.run(t.Context(), discovery.NewStore().Subscribe())
	testutil.Eventually(t, 20*time.Second, func() error {
		if list, _ := set.List(); len(list) != 1 {
			return errors.New("not there yet")
		}
		return nil
	})
	_ = set.Remove(addrs("10.0.0.1")...) // a draining ztunnel that was late
	testutil.Eventually(t, 20*time.Second, func() error {
		if list, _ := set.List(); len(list) != 1 {
			return errors.New("not back yet")
		}
		return nil
	})
}

// TestDestinationsFollowTheirSuccessor: an agent of another release replaces the set while ztunnel runs.
func TestDestinationsFollowTheirSuccessor(t *testing.T) {
	want := discovery.CaptureSet{Addrs: addrs("10.0.0.1"), Complete: true}
	d, old := newDestinations(t, &want)
	_, next := newDestinations(t, &want, "10.0.0.9")
	failed := errors.New("being replaced")
	d.open = func() (captureSet, error) { return next, failed }
	step := func(name, inOld, inNext string, wantErr error) {
		t.Helper()
		if err := d.pass(); !errors.Is(err, wantErr) {
			t.Errorf("%s: got %v, want %v", name, err, wantErr)
		}
		if a, b := old.history(), next.history(); a != inOld || b != inNext {
			t.Errorf("%s: got %q and %q, want %q and %q", name, a, b, inOld, inNext)
		}
	}
	step("first pass", "add 10.0.0.1, remove, complete", "", nil)
	old.stale, d.have = true, nil
	step("not there yet", "incomplete", "", failed)
	failed = nil
	step("there", "incomplete, close", "add 10.0.0.1, remove 10.0.0.9, complete", nil)
	d.have = nil
	step("an audit", "", "add, remove, complete", nil)
}

func TestDestinationsLookForASuccessor(t *testing.T) {
	want := discovery.CaptureSet{Addrs: addrs("10.0.0.1"), Complete: true}
	for name, set := range map[string]func(*destinations, *fakeSet){
		"at an audit":    func(d *destinations, _ *fakeSet) { d.audit = time.Millisecond },
		"after an error": func(d *destinations, s *fakeSet) { d.retry, s.fail = time.Millisecond, errors.New("map is full") },
	} {
		t.Run(name, func(t *testing.T) {
			d, old := newDestinations(t, &want)
			_, next := newDestinations(t, &want)
			d.open = func() (captureSet, error) { return next, nil }
			set(d, old)
			go d.run(t.Context(), discovery.NewStore().Subscribe())
			testutil.Eventually(t, 20*time.Second, func() error {
				old.mu.Lock()
				defer old.mu.Unlock()
				if !old.asked {
					return errors.New("no pass yet")
				}
				old.fail, old.stale = nil, true
				return nil
			})
			testutil.Eventually(t, 20*time.Second, func() error {
				if list, _ := next.List(); len(list) != 1 {
					return errors.New("not filled yet")
				}
				return nil
			})
		})
	}
}
