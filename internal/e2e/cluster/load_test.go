// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"encoding/json"
	"strings"
	"sync"
	"testing"

	"github.com/sluice-mesh/sluice/internal/lab/cluster"
)

// outcome is what "app load" prints.
type outcome struct {
	Requests, Failures int
	Errors             []string
	Servers            map[string]int
}

func (o *outcome) add(p outcome) {
	o.Requests += p.Requests
	o.Failures += p.Failures
	o.Errors = append(o.Errors, p.Errors...)
	for name, n := range p.Servers {
		if o.Servers == nil {
			o.Servers = map[string]int{}
		}
		o.Servers[name] += n
	}
}

// underLoad has the clients of all pairs ask the Service web, each request on a connection of its own, until f has returned,
// and fails the test if a single one failed.
func underLoad(t *testing.T, c *cluster.Cluster, pairs []pair, f func()) {
	t.Helper()
	var (
		stop  = make(chan struct{})
		loads sync.WaitGroup
		mu    sync.Mutex
		all   outcome
	)
	for _, p := range pairs {
		loads.Go(func() {
			for {
				out, err := c.Exec(p.client.Namespace, p.client.Name, "/app", "load", "-for", "3s", "http://web")
				o, ok := parseOutcome(out)
				if !ok {
					t.Errorf("load from %s: %v", p.client.Name, err)
					return
				}
				mu.Lock()
				all.add(o)
				mu.Unlock()
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	defer func() { // also if f ends the test
		close(stop)
		loads.Wait()
		t.Logf("%d requests, answered by %v", all.Requests, all.Servers)
		if all.Failures > 0 || all.Requests == 0 {
			t.Errorf("%d of %d requests failed: %s", all.Failures, all.Requests, strings.Join(all.Errors, "; "))
		}
	}()
	f()
}

// parseOutcome finds the result among what else kubectl prints.
func parseOutcome(text string) (o outcome, ok bool) {
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "{") && json.Unmarshal([]byte(line), &o) == nil {
			return o, true
		}
	}
	return o, false
}
