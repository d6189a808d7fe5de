// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// writes counts them.
type writes struct {
	mu  sync.Mutex
	n   int
	buf bytes.Buffer
}

func (w *writes) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.n++
	return w.buf.Write(p)
}

func (w *writes) state() (int, string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.n, w.buf.String()
}

func TestLinesShareWritesInOrder(t *testing.T) {
	var w writes
	s := &sink{w: &w}
	line := func(text string, mayWait bool) {
		if err := s.write([]byte(text), mayWait); err != nil {
			t.Fatal(err)
		}
	}
	line("a", true)
	if n, got := w.state(); n != 1 || got != "a" {
		t.Fatalf("after the first line: %d writes, %q", n, got)
	}
	s.mu.Lock()
	s.waiting = true // as long as the timer has not come
	s.mu.Unlock()
	line("b", true)
	line("c", true)
	line("D", false)
	if _, got := w.state(); got != "abcD" {
		t.Fatalf("got %q, want what waits before what must not", got)
	}
	line("e", true)
	wait := func(want string) {
		t.Helper()
		testutil.Eventually(t, 10*time.Second, func() error {
			if _, got := w.state(); got != want {
				return fmt.Errorf("%d bytes written, want %d", len(got), len(want))
			}
			return nil
		})
	}
	wait("abcDe")
	long := strings.Repeat("x", batchBytes)
	line(long, true)
	wait("abcDe" + long)
}

// TestFlushLeavesNothingWaiting: the last lines of a process are written though no other line pushes them out.
func TestFlushLeavesNothingWaiting(t *testing.T) {
	var w writes
	s := &sink{w: &w, waiting: true} // the timer never comes
	levels, err := ParseLevels("error,access=info")
	if err != nil {
		t.Fatal(err)
	}
	log := Scope(slog.New(&handler{sink: s, format: Text, levels: levels}), accessScope)
	log.Info("waits")
	if n, got := w.state(); n != 0 {
		t.Fatalf("%q is written, want it to wait", got)
	}
	for _, want := range []string{"waits", "late"} {
		if err := Flush(log); err != nil {
			t.Fatal(err)
		}
		if _, got := w.state(); !strings.Contains(got, want) {
			t.Errorf("got %q, want %q in it", got, want)
		}
		log.Info("late")
	}
	if n, _ := w.state(); n != 3 {
		t.Errorf("%d writes, want 3: after Flush no line waits", n)
	}
	if err := Flush(slog.New(slog.DiscardHandler)); err != nil {
		t.Error(err)
	}
}
