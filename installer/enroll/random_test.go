// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/bpf"
)

// TestWhateverHappensTheNodeConverges does random things to a node, restarts and damage included, and now and then waits
// until nothing differs from what is wanted:
//
//	wanted   alive pods of enrolled namespaces
//	actual   pins, workload files, ztunnel's table
func TestWhateverHappensTheNodeConverges(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	l := newLab(t, func(c *Config) { c.AdmitTimeout = 300 * time.Millisecond })
	w := &world{lab: l, rnd: rnd, enrolled: map[string]bool{"mesh": true, "other": false}, z: l.ztunnel("z0")}
	l.enrolNamespace("other", false)
	for step := range 60 {
		action := actions[rnd.IntN(len(actions))]
		t.Logf("step %d: %s", step, action.name)
		action.do(w)
		if step%10 == 9 {
			l.eventually(w.differences)
		}
	}
	l.eventually(w.differences)
	peer := l.pod("plain", "peer")
	for _, s := range w.alive {
		if w.enrolled[s.api.Namespace] {
			peer.wantGreeting(netip.AddrPortFrom(s.Addr4, 80), w.z.name+" inbound4")
		}
	}
}

type world struct {
	*lab
	rnd      *rand.Rand
	enrolled map[string]bool
	alive    []*sandbox
	z        *ztunnel
	made     int
}

var actions = []struct {
	name string
	do   func(*world)
}{
	{"add", (*world).add},
	{"add", (*world).add},
	{"ADD that dies half-way", func(w *world) {
		s := w.newPod()
		if _, err := s.decideAndAttach(); err != nil {
			w.t.Fatal(err)
		}
	}},
	{"delete", func(w *world) {
		if s := w.take(); s != nil {
			w.must(s.del())
			s.Delete(w.t)
		}
	}},
	{"vanish", func(w *world) {
		if s := w.take(); s != nil {
			s.Run(w.t, "ip", "link", "del", "eth0")
			s.Delete(w.t)
		}
	}},
	{"flip a label", func(w *world) {
		ns := []string{"mesh", "other"}[w.rnd.IntN(2)]
		w.enrolled[ns] = !w.enrolled[ns]
		w.enrolNamespace(ns, w.enrolled[ns])
	}},
	{"restart agent", func(w *world) { w.restart() }},
	{"replace ztunnel", func(w *world) {
		old := w.z
		w.z = w.ztunnel(fmt.Sprintf("z%d", w.rnd.IntN(1000)))
		old.kill()
	}},
	{"crash ztunnel", func(w *world) {
		w.z.kill()
		w.z = w.ztunnel(fmt.Sprintf("z%d", w.rnd.IntN(1000)))
	}},
	{"remove pins", func(w *world) {
		if s := w.any(); s != nil {
			w.must(w.bpf.DetachPod(s.api.ContainerID))
		}
	}},
	{"remove workload files", func(w *world) {
		entries, err := os.ReadDir(w.path("workloads"))
		w.must(err)
		for _, e := range entries {
			if err := os.Remove(w.path("workloads", e.Name())); !errors.Is(err, os.ErrNotExist) {
				w.must(err)
			}
		}
	}},
}

func (w *world) newPod() *sandbox {
	w.made++
	s := w.pod([]string{"mesh", "other"}[w.rnd.IntN(2)], fmt.Sprintf("p%d", w.made))
	w.alive = append(w.alive, s)
	return s
}

// add may find ztunnel gone for a moment; the runtime would try again with a new sandbox.
func (w *world) add() {
	s := w.newPod()
	if err := s.add(); err != nil {
		w.t.Logf("add: %v", err)
		w.alive = w.alive[:len(w.alive)-1]
		w.must(s.del())
		s.Delete(w.t)
	}
}

func (w *world) any() *sandbox {
	if len(w.alive) == 0 {
		return nil
	}
	return w.alive[w.rnd.IntN(len(w.alive))]
}

func (w *world) take() *sandbox {
	s := w.any()
	w.alive = slices.DeleteFunc(w.alive, func(o *sandbox) bool { return o == s })
	return s
}

// differences compares wanted with actual, everywhere.
func (w *world) differences() error {
	w.catalog.Reload()
	w.e.Kick()
	w.z.retry(w.t.Context())
	var want, pins, files []string
	for _, s := range w.alive {
		if w.enrolled[s.api.Namespace] {
			want = append(want, s.api.Name)
		}
	}
	infos, err := w.bpf.Pods()
	for _, info := range infos {
		pins = append(pins, info.Name)
	}
	entries, rerr := os.ReadDir(w.path("workloads"))
	for _, e := range entries {
		name := strings.TrimSuffix(e.Name(), ".yaml")
		files = append(files, name[strings.LastIndex(name, "_")+1:])
	}
	served := w.z.table()
	for _, list := range [][]string{want, pins, files, served} {
		slices.Sort(list)
	}
	errs := []error{err, rerr}
	for what, got := range map[string][]string{"pins": pins, "workload files": files, "ztunnel": served} {
		if !slices.Equal(got, want) {
			errs = append(errs, fmt.Errorf("%s: got %v, want %v", what, got, want))
		}
	}
	for _, s := range w.alive {
		if w.enrolled[s.api.Namespace] {
			errs = append(errs, w.check(s))
		}
	}
	return errors.Join(errs...)
}

func (w *world) check(s *sandbox) error {
	p, err := w.bpf.Pod(s.api.ContainerID)
	if errors.Is(err, bpf.ErrNotAttached) {
		return nil // Said above.
	}
	if err != nil {
		return err
	}
	return errors.Join(p.Check(), p.Close())
}

// table is the names of the pods that z serves.
func (z *ztunnel) table() []string {
	z.mu.Lock()
	defer z.mu.Unlock()
	var names []string
	for uid := range z.pods {
		names = append(names, strings.TrimPrefix(uid, "uid-"))
	}
	return names
}
