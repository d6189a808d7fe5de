// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"fmt"
	"net/http"
	"net/http/pprof"
	"strconv"
)

// Bounds of a CPU profile in seconds, the reference's.
const (
	defaultProfileSeconds = 10
	maxProfileSeconds     = 300
)

func handleProfiles(mux *http.ServeMux) {
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", cpuProfile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("GET /debug/pprof/heap/profiling", heapProfiling)
}

// cpuProfile reads seconds as the reference does; its frequency is Go's own, whatever is asked for.
func cpuProfile(w http.ResponseWriter, r *http.Request) {
	seconds := defaultProfileSeconds
	if text := r.URL.Query().Get("seconds"); text != "" {
		var err error
		if seconds, err = strconv.Atoi(text); err != nil || seconds < 1 || seconds > maxProfileSeconds {
			http.Error(w, fmt.Sprintf("seconds: %q is not a whole number from 1 to %d", text, maxProfileSeconds), http.StatusBadRequest)
			return
		}
	}
	query := r.URL.Query()
	query.Set("seconds", strconv.Itoa(seconds))
	r = r.Clone(r.Context())
	r.URL.RawQuery = query.Encode()
	pprof.Profile(w, r)
}

// heapProfiling is a toggle of the reference. Go samples the heap all the time.
func heapProfiling(w http.ResponseWriter, _ *http.Request) {
	fmt.Fprintln(w, "heap profiling is always active")
}
