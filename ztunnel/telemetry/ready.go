// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// Readiness is the set of things that still have to happen before ztunnel can serve. The zero value is ready.
type Readiness struct {
	mu      sync.Mutex
	pending []string
}

// Pend makes ztunnel not ready until Done(task). Pending twice is pending once.
func (r *Readiness) Pend(task string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Contains(r.pending, task) {
		r.pending = append(r.pending, task)
	}
}

// Done ends a task, pending or not.
func (r *Readiness) Done(task string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pending = slices.DeleteFunc(r.pending, func(p string) bool { return p == task })
}

// Pending lists what ztunnel waits for, in the order it began; empty means ready.
func (r *Readiness) Pending() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.pending)
}

// ServeHTTP answers 200 "ready", or 500 naming what is pending.
func (r *Readiness) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	if pending := r.Pending(); len(pending) > 0 {
		w.WriteHeader(http.StatusInternalServerError)
		fmt.Fprintf(w, "not ready, pending: %s\n", strings.Join(pending, ", "))
		return
	}
	fmt.Fprintln(w, "ready")
}
