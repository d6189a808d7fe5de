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
		"region of a workload that is known": func(i int) Peer {
			return Peer{Workload: "server", Namespace: "x", Region: fmt.Sprint("r", i), Principal: "spiffe://x"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := NewMetrics("test")
			server := Peer{Workload: "server", Namespace: "x"}
			for i := range maxByWordEach + 50 {
				m.SeriesByWord(Labels{Reporter: ReporterDestination, Source: peer(i), Destination: server}).Open().Close(1, 1, FlagNone)
			}
			if got, want := len(m.series), maxByWordEach+1; got != want {
				t.Errorf("%d series, want %d: all the rest counts as one", got, want)
			}
			rest := m.Series(Labels{Reporter: ReporterDestination, Source: Peer{Principal: "spiffe://x"}, Destination: server})
			if rest.labels.Source.Principal == "" || rest.byWord {
				t.Errorf("the rest counts under %+v", rest.labels.Source)
			}
			var known Known
			known.Add(server)
			if got := m.Evict(&known, time.Now().Add(time.Hour)); got != maxByWordEach || m.byWord != 0 || len(m.byWordOf) != 0 {
				t.Errorf("dropped %d, %d are left by word; want %d and none", got, m.byWord, maxByWordEach)
			}
		})
	}
}

// One identity that uses up its own room leaves the others theirs, and all together have a bound too.
func TestWhatOnePeerSaysLeavesRoomForOthers(t *testing.T) {
	m := NewMetrics("test")
	say := func(principal string, i int) *Series {
		return m.SeriesByWord(Labels{Reporter: ReporterSource, Destination: Peer{Workload: fmt.Sprint("w", i), Principal: principal}})
	}
	for i := range 2 * maxByWord {
		say("spiffe://hostile", i)
	}
	if s := say("spiffe://honest", 0); !s.byWord {
		t.Errorf("another peer counts under %+v", s.labels.Destination)
	}
	for i := range 2 * maxByWord {
		say(fmt.Sprint("spiffe://", i), 0)
	}
	if m.byWord != maxByWord {
		t.Errorf("%d series by word, want %d", m.byWord, maxByWord)
	}
}
