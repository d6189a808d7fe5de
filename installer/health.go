// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// health is the agent's HTTP page: /metrics, /healthz/ready and /healthz/live.
type health struct {
	started   atomic.Bool  // all that comes once is done
	installed atomic.Bool  // plugin and entry are in place now
	addr      atomic.Value // net.Addr, once serving
}

// serve listens if an address is configured and answers until stop is called.
func (h *health) serve(ctx context.Context, a *agent) (stop func(), err error) {
	if a.cfg.MetricsAddress == "" {
		return func() {}, nil
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", a.cfg.MetricsAddress)
	if err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	h.addr.Store(ln.Addr())
	registry := prometheus.NewRegistry()
	registry.MustRegister(&collector{a: a}, a.flows)
	mux := http.NewServeMux()
	mux.Handle("/metrics", figures(registry))
	mux.HandleFunc("/healthz/ready", h.serveReady)
	mux.HandleFunc("/healthz/live", func(w http.ResponseWriter, _ *http.Request) { h.serveLive(w, a) })
	srv := page(mux)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	return func() {
		_ = srv.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			a.log.Warn("metrics", "err", err)
		}
	}, nil
}

// serveLive answers if the agent can still say what it knows: one that hangs does not answer.
func (h *health) serveLive(w http.ResponseWriter, a *agent) {
	if h.started.Load() {
		a.enroller.PodsByPhase()
		a.ztunnels.Connected()
	}
	_, _ = io.WriteString(w, "alive\n")
}

func (h *health) serveReady(w http.ResponseWriter, _ *http.Request) {
	switch {
	case !h.started.Load():
		http.Error(w, "starting", http.StatusServiceUnavailable)
		return
	case !h.installed.Load():
		http.Error(w, "plugin or conflist entry is not in place; the log says why", http.StatusServiceUnavailable)
		return
	}
	_, _ = io.WriteString(w, "ready\n")
}
