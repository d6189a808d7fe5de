// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
)

const (
	// figuresLast is how old figures may be: whoever asks more often gets the same again.
	figuresLast = time.Second
	// maxScrapes is how many may be answered at once. More are told 503.
	maxScrapes = 4
)

// figures answers at /metrics. What they cost is bounded, whoever asks: the page has no password.
func figures(registry prometheus.Gatherer) http.Handler {
	return promhttp.HandlerFor(&lately{from: registry}, promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes, Timeout: 10 * time.Second})
}

// page serves what is small and asked for by probes and collectors.
func page(handler http.Handler) *http.Server {
	return &http.Server{
		Handler: handler, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second,
		IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
	}
}

// lately gathers once a second at most.
type lately struct {
	from prometheus.Gatherer

	mu  sync.Mutex
	at  time.Time
	all []*dto.MetricFamily
	err error
}

// Gather implements prometheus.Gatherer.
func (l *lately) Gather() ([]*dto.MetricFamily, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.at.IsZero() || time.Since(l.at) > figuresLast {
		l.all, l.err = l.from.Gather()
		l.at = time.Now()
	}
	return l.all, l.err
}
