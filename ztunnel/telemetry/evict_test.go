// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func countSeries(t *testing.T, m *Metrics, prefix string) int {
	t.Helper()
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, f := range families {
		if strings.HasPrefix(f.GetName(), prefix) {
			n += len(f.GetMetric())
		}
	}
	return n
}

func TestChurnedWorkloadsLeaveNothing(t *testing.T) {
	m := NewMetrics("v")
	var known Known
	known.Add(Peer{Workload: "server"})
	kept := m.Series(Labels{Destination: Peer{Workload: "server", Principal: "p", Zone: "z"}}).Open()
	kept.Close(1, 1, FlagNone)
	const batch = 1000
	for i := range 10 * batch {
		gone := Peer{Workload: fmt.Sprint("w", i), CanonicalService: fmt.Sprint("s", i)}
		c := m.Series(Labels{Source: gone, Destination: Peer{Workload: "server"}}).Open()
		c.Close(1, 2, FlagDeny)
		m.DNSUpstream(DNSLabels{"A", "udp", gone.CanonicalService, ""}, time.Second, true)
		m.DNSRequest(DNSLabels{"A", "udp", gone.CanonicalService, ""})
		m.OnDemandDNS(gone, "h.example")
		if i%batch == batch-1 {
			if n := m.Evict(&known, time.Now()); n != 3*batch {
				t.Fatalf("evicted %d sets of labels, want %d", n, 3*batch)
			}
		}
	}
	if n := len(m.series); n != 1 {
		t.Errorf("%d series are remembered, want 1", n)
	}
	for prefix, want := range map[string]int{"istio_tcp_connections_opened": 1, "istio_tcp_connections_failed": 0, "istio_tcp_received": 1, "istio_dns": 0, "istio_on_demand": 0} {
		if n := countSeries(t, m, prefix); n != want {
			t.Errorf("%s: %d series are exposed, want %d", prefix, n, want)
		}
	}
	if n := len(m.dns.used.last) + len(m.onDemandUsed.last); n != 0 {
		t.Errorf("%d uses are remembered, want 0", n)
	}
}

func TestEvictionSparesWhatIsInUse(t *testing.T) {
	m := NewMetrics("v")
	gone := Labels{Source: Peer{Workload: "gone"}}
	conn := m.Series(gone).Open()
	if n := m.Evict(&Known{}, time.Now()); n != 0 {
		t.Errorf("open connection: %d evicted, want 0", n)
	}
	held := m.Series(gone)
	conn.Close(1, 1, FlagConnect)
	if n := m.Evict(&Known{}, time.Now().Add(-time.Hour)); n != 0 {
		t.Errorf("used lately: %d evicted, want 0", n)
	}
	m.Series(Labels{MTLS: true}).Open().Close(1, 1, FlagNone)
	if n := m.Evict(&Known{}, time.Now()); n != 1 {
		t.Errorf("%d evicted, want 1: ends that are no workloads stay", n)
	}
	// Looked up before the eviction, opened after: counted where a scrape sees it.
	held.Open().Close(7, 7, FlagNone)
	if got := m.Series(gone); got == held || got.open.Load() != 0 {
		t.Error("an evicted series was used")
	}
	if n := countSeries(t, m, "istio_tcp_connections_opened"); n != 2 {
		t.Errorf("%d series are exposed, want 2", n)
	}
}

// TestEvictionKeepsNobodyWaiting: what waits for a scrape to end is the dropping, not the connections meanwhile.
func TestEvictionKeepsNobodyWaiting(t *testing.T) {
	m := NewMetrics("v")
	gone := Labels{Source: Peer{Workload: "gone"}}
	m.Series(gone).Open().Close(3, 3, FlagNone)
	m.Series(Labels{MTLS: true}).Open().Close(1, 1, FlagNone)
	scrape := make(chan prometheus.Metric) // a scrape that does not go on until it is read
	go func() { m.opened.Collect(scrape); close(scrape) }()
	<-scrape
	evicted := make(chan int, 1)
	go func() { evicted <- m.Evict(&Known{}, time.Now()) }()
	back := make(chan *Conn, 1)
	go func() {
		defer close(back)
		for m.isCounted(gone) {
			runtime.Gosched()
		}
		m.Series(Labels{MTLS: true}).Open().Close(1, 1, FlagNone) // passes though the scrape holds up the dropping
		for range scrape {
		}
		back <- m.Series(gone).Open() // after the dropping, not before it
	}()
	select {
	case conn := <-back:
		conn.Close(4, 4, FlagNone)
	case <-time.After(10 * time.Second):
		t.Error("a connection waits for the scrape")
		for range scrape {
		}
		<-back
	}
	if n := <-evicted; n != 1 {
		t.Errorf("%d evicted, want 1", n)
	}
	if n := countSeries(t, m, "istio_tcp_received"); n != 2 {
		t.Errorf("%d series are exposed, want 2: what came back counts where a scrape sees it", n)
	}
	if len(m.dropping) != 0 {
		t.Errorf("%d are being dropped, want none", len(m.dropping))
	}
}

func (m *Metrics) isCounted(l Labels) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	_, ok := m.series[l]
	return ok
}
