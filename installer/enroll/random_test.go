// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

// TestWhateverHappensTheNodeConverges does random things to a node, restarts and damage included, and now and then waits
// until nothing differs from what is wanted:
//
//	wanted   alive pods of enrolled namespaces, with the settings of their annotations and all their interfaces
//	actual   pins, links, settings, addresses, workload files, listeners, ztunnel's table, records
//
// SLUICE_SEED repeats a run.
func TestWhateverHappensTheNodeConverges(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("SLUICE_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("SLUICE_SEED: %v", err)
		}
	}
	t.Logf("SLUICE_SEED=%d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	l := newLab(t, func(c *Config) { c.AdmitTimeout = 300 * time.Millisecond })
	w := &world{lab: l, rnd: rnd, enrolled: map[string]bool{"mesh": true, "other": false}, settings: map[*sandbox]Settings{}, z: l.ztunnel("z0")}
	l.enrolNamespace("other", false)
	for step := range 100 {
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
	settings map[*sandbox]Settings // as the last good annotation has it
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
			_, _ = s.Try("ip", "link", "del", "net1")
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
	{"annotate", (*world).annotate},
	{"add a second network", (*world).addNetwork},
	{"take an interface away", func(w *world) {
		if s := w.any(); s != nil {
			_, _ = s.Try("ip", "link", "del", "net1")
		}
	}},
	{"change an address", (*world).changeAddress},
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

// annotate flips one annotation, also to values that are none. A pod that starts or is enrolled with such a value has the
// node's settings, so those are only given to pods that are in the mesh.
func (w *world) annotate() {
	s := w.any()
	if s == nil {
		return
	}
	switch w.rnd.IntN(4) {
	case 0:
		s.annotate(annotationCapture, "all")
		w.settings[s] = Settings{CaptureAll: true}
	case 1:
		s.annotate(annotationExcludePorts, "5432")
		w.settings[s] = Settings{ExcludePorts: []uint16{5432}}
	case 2:
		s.annotate(annotationBypassInbound, "false")
		w.settings[s] = Settings{}
	case 3:
		w.eventually(w.differences)
		if !w.enrolled[s.api.Namespace] {
			return
		}
		s.annotate(annotationDNS, "perhaps")
		w.eventually(func() error {
			if st := s.status(); !strings.Contains(st.Problem, "perhaps") || !st.Settings.Equal(w.settings[s]) {
				return fmt.Errorf("settings %+v, problem %q, want the last good ones and why", st.Settings, st.Problem)
			}
			return nil
		})
		s.annotate(annotationBypassInbound, "false")
		w.settings[s] = Settings{}
	}
}

// addNetwork is Multus calling the plugin for one more interface.
func (w *world) addNetwork() {
	s := w.any()
	if s == nil {
		return
	}
	if _, err := s.Try("ip", "link", "show", "net1"); err == nil {
		return
	}
	second := s.secondNetwork()
	if err := second.add(); err != nil {
		w.t.Logf("add network: %v", err)
	}
}

// changeAddress is ADD coming again with another address, as after a restart of the network plugin.
func (w *world) changeAddress() {
	s := w.any()
	if s == nil || len(s.api.Interfaces[0].Addresses) < 2 {
		return
	}
	s.Run(w.t, "ip", "-6", "addr", "add", fmt.Sprintf("fd00:77::%x/128", 1+w.rnd.IntN(1000)), "dev", "eth0", "nodad")
	if _, err := s.ask(nodeapi.VerbDecide); err != nil {
		w.t.Logf("decide: %v", err)
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
	records, lerr := w.fileNames(filepath.Join("state", "pods"))
	if len(records) != len(w.alive) {
		lerr = errors.Join(lerr, fmt.Errorf("%d records, want %d", len(records), len(w.alive)))
	}
	for _, list := range [][]string{want, pins, files, served} {
		slices.Sort(list)
	}
	errs := []error{err, rerr, lerr}
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
	defer func() { _ = p.Close() }()
	errs := []error{p.Check()}
	info, st := p.Info(), s.status()
	if got := attachedSettings(info); !got.Equal(w.settings[s]) {
		errs = append(errs, fmt.Errorf("%s: settings %+v, want %+v", s.api.Name, got, w.settings[s]))
	}
	if !slices.Contains(info.Addresses, s.Addr4) || !slices.Contains(info.Addresses, s.Addr6) {
		errs = append(errs, fmt.Errorf("%s: addresses %v, want %v and %v among them", s.api.Name, info.Addresses, s.Addr4, s.Addr6))
	}
	if p := w.e.get(s.api.ContainerID); p != nil {
		for _, i := range w.e.interfacesOf(p) {
			_, err := s.Try("ip", "link", "show", i.Name)
			if err == nil && !slices.Contains(info.Interfaces, i.Name) {
				errs = append(errs, fmt.Errorf("%s: %s is not captured", s.api.Name, i.Name))
			}
		}
	}
	if st.Phase != string(served) || st.Problem != "" || st.Listeners[bpf.SlotInbound4.String()] != "held" {
		errs = append(errs, fmt.Errorf("%s: %s, problem %q, listeners %v", s.api.Name, st.Phase, st.Problem, st.Listeners))
	}
	return errors.Join(errs...)
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
