// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/installer/enroll"
	"github.com/sluice-mesh/sluice/internal/lab"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// strictMesh has the server, and whoever is enrolled in namespace flip, refuse plain text.
const strictMesh = `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: mesh}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: flip}
spec: {mtls: {mode: STRICT}}
`

// TestLabelFlipsUnderTraffic has a pod whose namespace's label is flipped again and
// again. Connections from before it was first enrolled carry traffic all the time. STRICT peers tell on which side of the
// mesh a new connection is.
func TestLabelFlipsUnderTraffic(t *testing.T) {
	m := newMesh(t)
	label := func(mode string) {
		m.write("flip.yaml", fmt.Sprintf("apiVersion: v1\nkind: Namespace\nmetadata: {name: flip, labels: {istio.io/dataplane-mode: %s}}\n", mode))
	}
	label("none")
	runner, legacy := m.addPod(0, "runner", "flip"), m.addPod(1, "legacy", "plain")
	m.echo(runner)
	m.echo(legacy)
	var old []net.Conn
	for _, way := range [][2]*lab.Pod{{runner, legacy}, {legacy, runner}} {
		for _, family := range []int{4, 6} {
			old = append(old, m.connect(way[0], way[1], family))
		}
	}
	m.write("strict.yaml", strictMesh)
	traffic := startPings(t, old)
	for round := range 4 {
		enrolled := round%2 == 0
		label(map[bool]string{true: "ambient", false: "none"}[enrolled])
		m.wantPhase(runner, map[bool]string{true: "served", false: "known"}[enrolled])
		for _, family := range []int{4, 6} {
			m.wantSide(runner, legacy, family, enrolled)
		}
		if err := traffic.alive(); err != nil {
			t.Fatalf("round %d, enrolled %v: a connection from before broke: %v", round, enrolled, err)
		}
	}
	traffic.stop()
}

// connect opens a connection that stays, and makes sure of who answers.
func (m *mesh) connect(from, to *lab.Pod, family int) net.Conn {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), effect)
	defer cancel()
	c, err := inside(from).Dial(ctx, "tcp", echoOf(to, family).String())
	m.must(err)
	m.t.Cleanup(func() { c.Close() })
	answer, err := testutil.Ask(c)
	if err != nil || answer.Name != to.Name {
		m.t.Fatalf("%s to %s: got %+v, %v", from.Name, to.Name, answer, err)
	}
	return c
}

func (m *mesh) wantPhase(p *lab.Pod, phase string) {
	m.t.Helper()
	m.wantHost(m.Nodes[0], p.Name+" is "+phase, func(s *enroll.Status) bool {
		for _, st := range s.Pods {
			if st.Name == p.Name {
				return st.Phase == phase && st.Problem == ""
			}
		}
		return false
	})
}

// wantSide makes new connections: an enrolled pod reaches the server and refuses plain text, another does the opposite.
// What peers know of the pod takes a moment to be true.
func (m *mesh) wantSide(runner, legacy *lab.Pod, family int, enrolled bool) {
	m.t.Helper()
	if enrolled { // Its own side is in force as soon as the agent says so: no second chance.
		if err := reaches(legacy, runner, family); err == nil {
			m.t.Errorf("IPv%d: an enrolled pod answered in plain text", family)
		}
	}
	for _, c := range []struct {
		from, to *lab.Pod
		works    bool
	}{{runner, m.server, enrolled}, {m.client, runner, true}, {legacy, runner, !enrolled}} {
		testutil.Eventually(m.t, effect, func() error {
			err := reaches(c.from, c.to, family)
			if err == nil && !c.works {
				err = fmt.Errorf("%s reached %s, want it refused", c.from.Name, c.to.Name)
			} else if !c.works {
				err = nil
			}
			if err != nil {
				return fmt.Errorf("IPv%d, enrolled %v: %s to %s: %w", family, enrolled, c.from.Name, c.to.Name, err)
			}
			return nil
		})
	}
}

// pings pings connections until stopped.
type pings struct {
	stop   func()
	mu     sync.Mutex
	err    error
	rounds int
}

func startPings(t *testing.T, conns []net.Conn) *pings {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	tr := &pings{}
	tr.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	wg.Go(func() { tr.run(ctx, conns) })
	t.Cleanup(tr.stop)
	return tr
}

func (tr *pings) run(ctx context.Context, conns []net.Conn) {
	pace := time.NewTicker(5 * time.Millisecond)
	defer pace.Stop()
	for ctx.Err() == nil {
		var errs []error
		for _, c := range conns {
			if err := testutil.Ping(c); err != nil {
				errs = append(errs, fmt.Errorf("%v to %v: %w", c.LocalAddr(), c.RemoteAddr(), err))
			}
		}
		tr.mu.Lock()
		tr.err, tr.rounds = errors.Join(tr.err, errors.Join(errs...)), tr.rounds+1
		broken := tr.err != nil
		tr.mu.Unlock()
		if broken {
			return
		}
		<-pace.C
	}
}

// alive waits for a whole round of pings that began after the call.
func (tr *pings) alive() error {
	state := func() (int, error) {
		tr.mu.Lock()
		defer tr.mu.Unlock()
		return tr.rounds, tr.err
	}
	before, _ := state()
	return lab.Poll(effect, func() error {
		now, err := state()
		if err == nil && now < before+2 {
			err = errors.New("traffic stalls")
		}
		return err
	})
}
