// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"k8s.io/client-go/rest"
)

// remind is how often an outage that lasts is logged.
const remind = time.Minute

// Reach follows whether the Kubernetes API answers what is asked. Safe for concurrent use.
type Reach struct {
	log *slog.Logger

	mu            sync.Mutex
	since, logged time.Time // the zero time while the API answers
}

// NewReach takes the API to answer until it does not.
func NewReach(log *slog.Logger) *Reach { return &Reach{log: log} }

// Follow returns a copy of c whose requests tell r what became of them.
func (r *Reach) Follow(c *rest.Config) *rest.Config {
	c = rest.CopyConfig(c)
	c.Wrap(func(next http.RoundTripper) http.RoundTripper { return &followed{next, r} })
	return c
}

// Outage is how long the API has not answered, at least a nanosecond; 0 if the last request was answered.
func (r *Reach) Outage() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.since.IsZero() {
		return 0
	}
	return max(time.Since(r.since), 1)
}

func (r *Reach) failed(request *http.Request, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if r.since.IsZero() {
		r.since = now
	}
	if now.Sub(r.logged) < remind {
		return
	}
	r.logged = now
	r.log.Warn("kubernetes API does not answer; what is known stays in force", "request", request.Method+" "+request.URL.Path, "err", err, "for", now.Sub(r.since).Round(time.Second))
}

func (r *Reach) answered() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.since.IsZero() {
		return
	}
	if !r.logged.Before(r.since) {
		r.log.Info("kubernetes API answers again", "after", time.Since(r.since).Round(time.Second))
	}
	r.since = time.Time{}
}

type followed struct {
	http.RoundTripper
	reach *Reach
}

// RoundTrip implements http.RoundTripper.
func (f *followed) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := f.RoundTripper.RoundTrip(r)
	switch {
	case err != nil && errors.Is(r.Context().Err(), context.Canceled): // nobody wants to know any more
	case err != nil:
		f.reach.failed(r, err)
	case answer.StatusCode >= http.StatusBadGateway: // of what stands before the API, or of an API that is not ready
		f.reach.failed(r, fmt.Errorf("status %s", answer.Status))
	default:
		f.reach.answered()
	}
	return answer, err
}
