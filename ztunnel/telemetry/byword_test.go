// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"fmt"
	"testing"
	"time"
)

// TestWhatPeersSayOfThemselvesIsBounded: a client of another network can call itself anything, and be anybody's.
func TestWhatPeersSayOfThemselvesIsBounded(t *testing.T) {
	for name, peer := range map[string]func(i int) Peer{
		"workload":    func(i int) Peer { return Peer{Workload: fmt.Sprint("w", i), Principal: "spiffe://x"} },
		"region only": func(i int) Peer { return Peer{Region: fmt.Sprint("r", i), Principal: "spiffe://x"} },
	} {
		t.Run(name, func(t *testing.T) {
			m := NewMetrics("test")
			server := Peer{Workload: "server", Namespace: "x"}
			for i := range maxByWord + 50 {
				m.SeriesByWord(Labels{Reporter: ReporterDestination, Source: peer(i), Destination: server}).Open().Close(1, 1, FlagNone)
			}
			if got, want := len(m.series), maxByWord+1; got != want {
				t.Errorf("%d series, want %d: all the rest counts as one", got, want)
			}
			rest := m.Series(Labels{Reporter: ReporterDestination, Source: Peer{Principal: "spiffe://x"}, Destination: server})
			if rest.labels.Source.Principal == "" || rest.byWord {
				t.Errorf("the rest counts under %+v", rest.labels.Source)
			}
			var known Known
			known.Add(server)
			if got := m.Evict(&known, time.Now().Add(time.Hour)); got != maxByWord || m.byWord != 0 {
				t.Errorf("dropped %d, %d are left by word; want %d and none", got, m.byWord, maxByWord)
			}
		})
	}
}
