// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// oldNode makes below root what an older release left: no settings, a set of destinations of another size, and nothing
// of what came later. Programs that are attached by it run over its maps.
func oldNode(t *testing.T, root string) *Node {
	t.Helper()
	spec, err := captureSpec()
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{nodeDir, podsDir, workDir} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	n, err := openNode(root, func(path string, want *ebpf.MapSpec) (*ebpf.Map, error) {
		if _, ok := spec.Maps[filepath.Base(path)]; !ok {
			return nil, ErrNotLoaded
		}
		old := want.Copy()
		if old.Name == captureMapDestinations {
			if old.MaxEntries = 1 << 18; want.MaxEntries == 1<<18 {
				old.MaxEntries = 1 << 17
			}
		}
		return pinNew(path, old)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	return n
}

// setRecordVersion rewrites a pod's record as another release would have written it.
func setRecordVersion(t *testing.T, p *Pod, version int) {
	t.Helper()
	text, err := json.Marshal(infoRecord{version, p.info})
	if err != nil {
		t.Fatal(err)
	}
	value := make([]byte, maxInfoBytes)
	copy(value, text)
	mustPut(t, p.maps.Info, uint32(0), value)
}

// TestOlderNodeIsMigrated: the agent is upgraded while pods run. Nothing breaks, nothing leaks, nothing is forgotten.
func TestOlderNodeIsMigrated(t *testing.T) {
	w := newWorld(t)
	w.root = filepath.Join(filepath.Dir(w.root), "older")
	mode, old := w.mode, oldNode(t, w.root)
	old.mode = mode
	w.Node = old
	client, server, outside := w.enrol(t, w.host.Pod(t, "client")), w.host.Pod(t, "server"), w.host.Pod(t, "outside")
	setRecordVersion(t, client.bpf, 1)
	w.mesh(t, server)
	wire := sniff(t, w.host.NS, server.HostIf)
	addr, stranger := netip.AddrPortFrom(server.Addr4, 80), netip.AddrPortFrom(outside.Addr4, 80)
	outside.Echo(t, "outside", stranger.String())
	open, err := client.Dial(context.Background(), "tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = open.Close() }()
	if _, err := testutil.Ask(open); err != nil {
		t.Fatal(err)
	}
	wantAnswer(t, client.NS, stranger, "outside", client.Addr4)
	links, _ := client.linkIDs(t)
	captured := client.count(t, VerdictCaptured)

	if _, err := OpenNode(w.root); !errors.Is(err, ebpf.ErrMapIncompatible) {
		t.Errorf("OpenNode before the agent: got %v, want %v", err, ebpf.ErrMapIncompatible)
	}
	var now *Node
	w.host.MustDo(t, func() (err error) {
		now, err = LoadNode(w.root)
		return err
	})
	t.Cleanup(func() { _ = now.Close() })
	w.Node = now
	if got, err := now.Destinations().List(); err != nil || !slices.Equal(got, []netip.Addr{server.Addr4, server.Addr6}) {
		t.Errorf("destinations: got %v, %v", got, err)
	}
	for name, n := range map[string]*Node{"old": old, "new": now} {
		if complete, err := n.Destinations().Complete(); err != nil || complete {
			t.Errorf("%s set: complete: got %v, %v, want false", name, complete, err)
		}
	}
	if err := testutil.Ping(open); err != nil {
		t.Errorf("open connection: %v", err)
	}
	wantAnswer(t, client.NS, addr, "outbound@"+addr.String(), client.Addr4)
	wantAnswer(t, client.NS, stranger, "outbound@"+stranger.String(), client.Addr4)
	if got := client.count(t, VerdictCaptured); got != captured+2 {
		t.Errorf("captured: got %d, want %d", got, captured+2)
	}
	linksNow, _ := client.linkIDs(t)
	if diff := cmp.Diff(links, linksNow); diff != "" {
		t.Errorf("links (-before +after):\n%s", diff)
	}
	w.mesh(t)
	wantAnswer(t, client.NS, stranger, "outside", client.Addr4)
	p, err := now.Pod(client.Name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	if err := w.check(p); err != nil {
		t.Error(err)
	}
	wire.wantNone(t, client.Pod, server)
}

// TestProgramsOverOldMapsAreTold: a pod that could not be given new programs captures everything; Check says so, and
// attaching again is the cure.
func TestProgramsOverOldMapsAreTold(t *testing.T) {
	w := newWorld(t)
	w.root = filepath.Join(filepath.Dir(w.root), "older")
	mode, old := w.mode, oldNode(t, w.root)
	old.mode = mode
	w.Node = old
	client := w.enrol(t, w.host.Pod(t, "client"))
	lock, err := old.lockPod(client.Name, true) // as if somebody changed it just now
	if err != nil {
		t.Fatal(err)
	}
	var now *Node
	w.host.MustDo(t, func() (err error) {
		now, err = LoadNode(w.root)
		return err
	})
	t.Cleanup(func() { _ = now.Close() })
	lock.release()
	w.Node = now
	p, err := now.Pod(client.Name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	if err := w.check(p); err == nil || !strings.Contains(err.Error(), "maps of an earlier release") {
		t.Errorf("Check: got %v, want it to name the maps", err)
	}
	if err := w.check(w.attach(t, client.Pod)); err != nil {
		t.Errorf("after attaching again: %v", err)
	}
}

// TestNewerNodeIsRefused: an agent that was rolled back keeps its hands off what it does not know.
func TestNewerNodeIsRefused(t *testing.T) {
	w := newWorld(t)
	pod := w.enrol(t, w.host.Pod(t, "pod"))
	if err := writeSettings(w.root, nodeSettings{Version: nodeVersion + 1, AttachMode: AttachTCX}); err != nil {
		t.Fatal(err)
	}
	before := mapIDs(t, filepath.Join(w.root, nodeDir))
	_, progs := pod.linkIDs(t)
	for name, open := range map[string]func() (*Node, error){
		"LoadNode": func() (*Node, error) { return LoadNode(w.root) }, "OpenNode": func() (*Node, error) { return OpenNode(w.root) },
	} {
		if _, err := open(); !errors.Is(err, ErrNewerRelease) || !strings.Contains(fmt.Sprint(err), "version 2, want at most 1") {
			t.Errorf("%s: got %v, want %v", name, err, ErrNewerRelease)
		}
	}
	if diff := cmp.Diff(before, mapIDs(t, filepath.Join(w.root, nodeDir))); diff != "" {
		t.Errorf("maps (-before +after):\n%s", diff)
	}
	if _, now := pod.linkIDs(t); !maps.Equal(progs, now) {
		t.Errorf("programs: got %v, want %v", now, progs)
	}
}

// mapIDs are the ids of the maps that are pinned in dir.
func mapIDs(t *testing.T, dir string) map[string]ebpf.MapID {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]ebpf.MapID{}
	for _, e := range entries {
		m, err := ebpf.LoadPinnedMap(filepath.Join(dir, e.Name()), nil)
		if err != nil {
			continue // a link of the host's
		}
		info, err := m.Info()
		_ = m.Close()
		if err != nil {
			t.Fatal(err)
		}
		ids[e.Name()], _ = info.ID()
	}
	return ids
}

// TestOlderPodMapsAreMigrated: a pod whose maps have another shape, or are missing, gets new ones with the new programs.
func TestOlderPodMapsAreMigrated(t *testing.T) {
	w := newWorld(t)
	pod, server := w.enrol(t, w.host.Pod(t, "pod")), w.host.Pod(t, "server")
	w.mesh(t, server)
	shrink := func(name string, fill func(*ebpf.Map)) {
		m, err := ebpf.LoadPinnedMap(filepath.Join(pod.bpf.dir, name), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = m.Close() }()
		old, err := pinNew(filepath.Join(pod.bpf.dir, name), &ebpf.MapSpec{
			Type: m.Type(), KeySize: m.KeySize(), ValueSize: m.ValueSize(), MaxEntries: 6, Flags: m.Flags(),
		})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = old.Close() }()
		fill(old)
	}
	mustRemove(t, filepath.Join(pod.bpf.dir, captureMapSearching))
	shrink(captureMapVerdicts, func(m *ebpf.Map) {
		counters := make([]uint64, ebpf.MustPossibleCPU())
		counters[0] = 5
		mustPut(t, m, uint32(VerdictCaptured), counters)
	})
	again := w.attach(t, pod.Pod)
	got, err := again.Verdicts()
	if err != nil || got[VerdictCaptured] != 5 {
		t.Errorf("captured: got %d, %v, want 5", got[VerdictCaptured], err)
	}
	pod.bpf = again
	addr := netip.AddrPortFrom(server.Addr4, 80)
	wantAnswer(t, pod.NS, addr, "outbound@"+addr.String(), pod.Addr4)
	pod.wantVerdict(t, VerdictCaptured, 6)

	if specs, err := podMapSpecs(1); err != nil || specs[dispatchMapListeners].MaxEntries <= 6 {
		return // nothing that is smaller
	}
	shrink(dispatchMapListeners, func(m *ebpf.Map) {
		mustPut(t, m, uint32(SlotOutbound4), uint64(pod.proxy.fds(t)[SlotOutbound4]))
	})
	if _, err := w.tryAttach(pod.Pod); err == nil || !strings.Contains(err.Error(), "attach with the listener of slot outbound4") {
		t.Errorf("without listeners: got %v, want a refusal", err)
	}
	wantAnswer(t, pod.NS, addr, "outbound@"+addr.String(), pod.Addr4)
	w.attach(t, pod.Pod, func(c *PodConfig) { c.Listeners = pod.proxy.fds(t) })
	wantAnswer(t, pod.NS, addr, "outbound@"+addr.String(), pod.Addr4)
}

// TestUnreadablePinsAreLeftAlone: what cannot be read may be capturing. Nothing of it is taken apart.
func TestUnreadablePinsAreLeftAlone(t *testing.T) {
	w := newWorld(t)
	pod := w.host.Pod(t, "pod")
	p := w.attach(t, pod)
	stray := filepath.Join(p.dir, capturePrefix+"x")
	m, err := pinNew(stray, infoSpec())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	if _, err := w.tryAttach(pod); err == nil || !strings.Contains(err.Error(), "capture_x: not ours") {
		t.Errorf("attach: got %v, want it to name the pin", err)
	}
	if err := w.DetachPod(pod.Name); err == nil || !strings.Contains(err.Error(), "neither a link nor a program") {
		t.Errorf("detach: got %v, want it to name the pin", err)
	}
	// dispatch goes last, and with it the record.
	old := filepath.Join(w.root, workDir, pod.Name, "old")
	if target, err := linkTarget(filepath.Join(old, dispatchLink)); err != nil || target == 0 {
		t.Errorf("dispatch: got %d, %v, want it attached", target, err)
	}
	mustRemove(t, filepath.Join(old, capturePrefix+"x"))
	if err := w.DetachPod(pod.Name); err != nil {
		t.Error(err)
	}
	w.wantNoPins(t)
}
