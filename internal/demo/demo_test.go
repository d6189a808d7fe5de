// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/internal/lab"
)

func TestAttemptsAreSortedByWhenTheyBegan(t *testing.T) {
	event := time.Now()
	at := func(from, to int, err error) attempt {
		return attempt{began: event.Add(time.Duration(from) * time.Second), ended: event.Add(time.Duration(to) * time.Second), err: err}
	}
	broken := errors.New("connection reset by peer")
	got := sortAttempts([]attempt{
		at(-3, -2, nil),   // over before
		at(-2, 1, nil),    // under way, and lived
		at(-1, 1, broken), // under way, and lost: allowed, counted
		at(1, 5, nil),     // begun after, and served late
		at(2, 3, broken),  // begun after, and refused
		at(-5, -4, broken),
	}, event)
	want := tally{total: 6, openThen: 2, lost: 1, after: 2, refused: 2, slowest: 4 * time.Second, example: broken}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestAFailedRowFailsTheDemo(t *testing.T) {
	r := &report{number: 1}
	r.figure("a figure", "42")
	r.check(true, "a claim that holds", "yes")
	if r.failed != 0 {
		t.Errorf("failed: got %d, want 0", r.failed)
	}
	r.check(false, "a claim that does not", "no")
	if r.failed != 1 {
		t.Errorf("failed: got %d, want 1", r.failed)
	}
	var out bytes.Buffer
	(&scene{out: &out}).print(r)
	for _, want := range []string{proofs[0].title, "ok    a claim that holds", "FAIL  a claim that does not", "-     a figure"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("table lacks %q:\n%s", want, out.String())
		}
	}
}

func TestManifestsOfTheDemoAreThere(t *testing.T) {
	s := &scene{Lab: lab.New("demo", t.TempDir(), ""), manifests: "../../manifests/demo"}
	for _, name := range []string{"mesh", "strict", "deny-client", "enrol-legacy"} {
		if err := s.apply(name); err != nil {
			t.Error(err)
		}
		if err := s.withdraw(name); err != nil {
			t.Error(err)
		}
	}
	left, err := os.ReadDir(s.Manifests())
	if err != nil || len(left) != 0 {
		t.Errorf("after withdrawing: got %v, %v, want nothing", left, err)
	}
}

func TestBadCommandLine(t *testing.T) {
	for _, args := range [][]string{nil, {"up", "extra"}, {"run", "-nonsense"}} {
		if got := run(args, io.Discard, io.Discard); got != 2 {
			t.Errorf("%q: got exit code %d, want 2", args, got)
		}
	}
}
