// SPDX-License-Identifier: Apache-2.0

package programs

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/internal/lab"
)

const (
	floodPort uint16 = 7700 + iota
	probePort
)

const (
	// floodStreams are those of iperf3, each way.
	floodStreams = 32
	floodFor     = 10 * time.Second
	// fewestProbes is what must come through meanwhile, of either kind, however slow the machine.
	fewestProbes = 5
)

const probeManifests = `
apiVersion: v1
kind: Pod
metadata: {name: prober, namespace: mesh, labels: {app: prober}}
spec: {serviceAccountName: prober}
---
apiVersion: v1
kind: Pod
metadata: {name: answerer, namespace: mesh, labels: {app: answerer}}
spec: {serviceAccountName: answerer}
`

// TestFloodStarvesNobody: client and server flood each other with iperf3. Beside it, through the same two ztunnels, a pod
// asks another for one small answer after the other, on a connection that stays and on new ones: all come, mutual TLS and
// all, until the flood ends by itself.
func TestFloodStarvesNobody(t *testing.T) {
	p := enter(t)
	prober, answerer := p.probers(t)
	p.serve(p.server, "iperf3", floodPort, "iperf3", "-s", "-p", strconv.Itoa(int(floodPort)))
	p.overBoth(floodPort, 2*floodStreams+1, func(t *testing.T, to netip.AddrPort) {
		probe := at(answerer, 6, probePort)
		if to.Addr().Is4() {
			probe = at(answerer, 4, probePort)
		}
		flooded := make(chan struct{})
		var probes sync.WaitGroup
		end := sync.OnceFunc(func() {
			close(flooded)
			probes.Wait()
		})
		defer end()
		again, anew := p.askAgain(t, prober, probe), func() error { return p.askAnew(prober, probe) }
		probes.Go(func() { probeUntil(t, "on one connection", flooded, again) })
		probes.Go(func() { probeUntil(t, "on new connections", flooded, anew) })
		p.flood(t, to)
		end()
		if got := p.inbound(probe, mtls, `"src.identity":"spiffe://cluster.local/ns/mesh/sa/prober"`); len(got) < fewestProbes {
			t.Errorf("%d connections of the probe were in mutual TLS, want at least %d", len(got), fewestProbes)
		}
	})
}

// probers adds a pod on either node and starts an echo server in the second.
func (p *place) probers(t *testing.T) (prober, answerer *lab.Pod) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(p.Write("probe.yaml", probeManifests))
	t.Cleanup(func() { _ = p.Remove("probe.yaml") })
	add := func(node int, name string) *lab.Pod {
		pod, err := p.Nodes[node].AddPod(lab.PodSpec{Name: name, Namespace: "mesh"})
		must(err)
		t.Cleanup(func() {
			if err := p.Nodes[node].DelPod(pod); err != nil {
				t.Errorf("delete %s: %v", name, err)
			}
		})
		return pod
	}
	prober, answerer = add(0, "prober"), add(1, "answerer")
	l, err := p.Listen(answerer.NS, fmt.Sprintf("[::]:%d", probePort))
	must(err)
	t.Cleanup(func() { _ = l.Close() })
	go echoAll(l)
	for _, family := range families {
		to := at(answerer, family, probePort)
		must(lab.Poll(effect, func() error { // until then the answerer may be reached in clear, as any pod
			if err := p.askAnew(prober, to); err != nil {
				return err
			}
			if len(p.inbound(to, mtls)) == 0 {
				return fmt.Errorf("no connection in mutual TLS to %v yet", to)
			}
			return nil
		}))
	}
	return prober, answerer
}

// flood runs iperf3 from the client to the server, both ways at once, to its end.
func (p *place) flood(t *testing.T, to netip.AddrPort) {
	out := p.run(t, "iperf3", "-c", to.Addr().String(), "-p", strconv.Itoa(int(to.Port())), "--bidir", "-J",
		"-P", strconv.Itoa(floodStreams), "-t", strconv.Itoa(int(floodFor.Seconds())))
	var report struct {
		End struct {
			There struct{ Bytes float64 } `json:"sum_received"`
			Back  struct{ Bytes float64 } `json:"sum_received_bidir_reverse"`
		}
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		t.Fatalf("%v in what iperf3 says: %s", err, out)
	}
	there, back := report.End.There.Bytes, report.End.Back.Bytes
	t.Logf("the flood: %.0f MB there, %.0f MB back", there/1e6, back/1e6)
	if there == 0 || back == 0 {
		t.Errorf("iperf3 moved %.0f bytes there and %.0f back", there, back)
	}
}

// askAgain returns a function that asks on one connection.
func (p *place) askAgain(t *testing.T, from *lab.Pod, to netip.AddrPort) func() error {
	t.Helper()
	c, err := p.DialTimeout(from.NS, to.String(), effect)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return func() error { return askOn(c) }
}

// askAnew asks on a connection of its own.
func (p *place) askAnew(from *lab.Pod, to netip.AddrPort) error {
	c, err := p.DialTimeout(from.NS, to.String(), effect)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	return askOn(c)
}

func askOn(c net.Conn) error {
	_ = c.SetDeadline(time.Now().Add(commandTimeout))
	return echoBlock(c, 64)
}

// probeUntil asks until the flood is over, and says in the log how long it took: nothing depends on that.
func probeUntil(t *testing.T, kind string, flooded <-chan struct{}, ask func() error) {
	var took []time.Duration
	for {
		select {
		case <-flooded:
			if len(took) < fewestProbes {
				t.Errorf("%s: %d answers in %s of flood, want at least %d", kind, len(took), floodFor, fewestProbes)
				return
			}
			slices.Sort(took)
			t.Logf("%s: %d answers, half within %s, 99 of 100 within %s, all within %s",
				kind, len(took), took[len(took)/2], took[len(took)*99/100], took[len(took)-1])
			return
		default:
		}
		start := time.Now()
		if err := ask(); err != nil {
			t.Errorf("%s: probe %d: %v", kind, len(took)+1, err)
			return
		}
		took = append(took, time.Since(start))
	}
}
