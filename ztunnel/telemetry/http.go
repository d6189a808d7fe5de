// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// StatsHandler serves the metrics at /metrics and /stats/prometheus, as OpenMetrics and compressed for those who ask.
func StatsHandler(m *Metrics) http.Handler {
	scrape := promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{EnableOpenMetrics: true})
	polled := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.poll()
		scrape.ServeHTTP(w, r)
	})
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", polled)
	mux.Handle("GET /stats/prometheus", polled)
	return mux
}

// ReadyHandler serves r at /healthz/ready.
func ReadyHandler(r *Readiness) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /healthz/ready", r)
	return mux
}

// Admin is what the admin page shows and does. It has no authentication: bind it to loopback only.
type Admin struct {
	// Dump returns what /config_dump prints as JSON.
	Dump func() any
	// Recent returns what /debug/connections prints; nil means nothing.
	Recent func() []Recent
	// Explain returns what /debug/explain prints: what would become of a connection of the pod with a uid to a
	// destination, "host:port". An error is the request's fault. nil means that there is no such page.
	Explain func(uid, destination string) (any, error)
	Levels  *Levels
	// Quit begins a graceful shutdown and returns at once.
	Quit func()
}

const adminIndex = `<!DOCTYPE html><title>ztunnel</title><h1>ztunnel</h1><ul>
<li><a href="/config_dump">config_dump</a>: what ztunnel knows, as JSON
<li><a href="/debug/connections">debug/connections</a>: the connections that ended last, as JSON
<li>debug/explain?pod=UID&amp;dst=HOST:PORT: what would become of a connection, as JSON
<li>logging: POST, ?level=debug or ?level=access=debug,xds=warn or ?reset; without a query lists levels
<li>quitquitquit: POST, drain and exit
<li><a href="/debug/pprof/">debug/pprof</a>
</ul>
`

// Handler returns the admin page.
func (a *Admin) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		fmt.Fprint(w, adminIndex)
	})
	mux.HandleFunc("GET /config_dump", a.dump)
	mux.HandleFunc("GET /debug/connections", a.connections)
	if a.Explain != nil {
		mux.HandleFunc("GET /debug/explain", a.explain)
	}
	mux.HandleFunc("POST /logging", a.logging)
	mux.HandleFunc("POST /quitquitquit", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "shutdown now")
		a.Quit()
	})
	handleProfiles(mux)
	return mux
}

func (a *Admin) dump(w http.ResponseWriter, _ *http.Request) { writeJSON(w, a.Dump()) }

func (a *Admin) explain(w http.ResponseWriter, r *http.Request) {
	explanation, err := a.Explain(r.URL.Query().Get("pod"), r.URL.Query().Get("dst"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	writeJSON(w, explanation)
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	out := json.NewEncoder(w)
	out.SetIndent("", "  ")
	if err := out.Encode(v); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

func (a *Admin) logging(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	if query.Has("reset") {
		a.Levels.Reset()
	}
	if query.Has("level") {
		level := query.Get("level")
		if err := a.Levels.Update(level); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	fmt.Fprintf(w, "current log level is %s\n", a.Levels)
}

// lastAnswers is how long requests in progress may take when Serve is to end.
const lastAnswers = time.Second

// Serve answers on l until ctx ends, lets requests in progress have their answers, and returns nil. It closes l.
func Serve(ctx context.Context, l net.Listener, h http.Handler) error {
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		limit, cancel := context.WithTimeout(context.Background(), lastAnswers)
		defer cancel()
		if server.Shutdown(limit) != nil {
			_ = server.Close()
		}
	})
	err := server.Serve(l)
	if !stop() {
		<-ended
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}
