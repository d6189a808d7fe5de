// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"

	"github.com/sluice-mesh/sluice/internal/netns"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// trace is everything that attaching changes in a pod's namespace and on its host end.
func (w *world) trace(t *testing.T, pod *testutil.Pod) string {
	t.Helper()
	var b strings.Builder
	for _, args := range []string{"-4 rule", "-6 rule", "-4 route show table all", "-6 route show table all"} {
		fmt.Fprintf(&b, "ip %s:\n%s", args, pod.Run(t, "ip", strings.Fields(args)...))
	}
	query := func(name string, target int, attach ebpf.AttachType) {
		r, err := link.QueryPrograms(link.QueryOptions{Target: target, Attach: attach})
		if err != nil {
			t.Errorf("query %s: %v", name, err)
			return
		}
		fmt.Fprintf(&b, "%s: %d programs\n", name, len(r.Programs))
	}
	pod.MustDo(t, func() error {
		open, err := loopbackIsOpen()
		fmt.Fprintf(&b, "accept_local: %v\n", open)
		ns, err2 := netns.Current()
		if err2 != nil {
			return err2
		}
		defer func() { _ = ns.Close() }()
		query("dispatch", ns.FD(), ebpf.AttachSkLookup)
		query("local", loopbackIfindex, ebpf.AttachTCXEgress)
		return err
	})
	eth0 := pod.Ifindex(t, "eth0")
	pod.MustDo(t, func() error { query("capture", eth0, ebpf.AttachTCXEgress); return nil })
	w.host.MustDo(t, func() error { query("guard", pod.HostIfindex, ebpf.AttachTCXIngress); return nil })
	return b.String()
}

// wantNoPins checks that nothing of any pod is left below the root.
func (w *world) wantNoPins(t *testing.T) {
	t.Helper()
	for _, dir := range []string{podsDir, workDir} {
		if ids, err := w.ids(dir); err != nil || len(ids) > 0 {
			t.Errorf("%s: got %v, %v, want none", dir, ids, err)
		}
	}
}

func TestDetachLeavesNoTrace(t *testing.T) {
	w := newWorld(t)
	pod, legacy := w.host.Pod(t, "pod"), w.host.Pod(t, "legacy")
	pod.Echo(t, "app", netip.AddrPortFrom(pod.Addr4, 80).String())
	before := w.trace(t, pod)
	p := w.attach(t, pod)
	if w.trace(t, pod) == before {
		t.Error("attaching left no trace: this test sees nothing")
	}
	for range 2 {
		if err := w.DetachPod(pod.Name); err != nil {
			t.Error(err)
		}
	}
	if diff := cmp.Diff(before, w.trace(t, pod)); diff != "" {
		t.Errorf("after detaching (-before +after):\n%s", diff)
	}
	w.wantNoPins(t)
	wantAnswer(t, legacy.NS, netip.AddrPortFrom(pod.Addr4, 80), "app", legacy.Addr4)
	if _, err := w.Pod(pod.Name); !errors.Is(err, ErrNotAttached) {
		t.Errorf("Pod: got %v, want %v", err, ErrNotAttached)
	}
	if err := w.check(p); err == nil {
		t.Error("Check of a detached pod: got nil")
	}
}

func TestDetachKeepsWhatWasThere(t *testing.T) {
	w := newWorld(t)
	pod := w.host.Pod(t, "pod")
	pod.Sysctl(t, "net.ipv4.conf.lo.accept_local", "1")
	before := w.trace(t, pod)
	w.attach(t, pod)
	w.attach(t, pod)
	if err := w.DetachPod(pod.Name); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(before, w.trace(t, pod)); diff != "" {
		t.Errorf("after detaching (-before +after):\n%s", diff)
	}
}

func TestFailedAttachLeavesNoTrace(t *testing.T) {
	w := newWorld(t)
	pod := w.host.Pod(t, "pod")
	before := w.trace(t, pod)
	_, err := w.tryAttach(pod, func(c *PodConfig) { c.HostIfindexes = []int{pod.HostIfindex, 1 << 20} }) // the last step
	if err == nil || !strings.Contains(err.Error(), "guard_1048576") {
		t.Errorf("got %v, want an error that names the guard's interface", err)
	}
	if diff := cmp.Diff(before, w.trace(t, pod)); diff != "" {
		t.Errorf("(-before +after):\n%s", diff)
	}
	w.wantNoPins(t)
}

func TestInfoIsKept(t *testing.T) {
	w := newWorld(t)
	pod := w.host.Pod(t, "pod")
	p := w.attach(t, pod, func(c *PodConfig) { c.CaptureAll = true })
	want := PodInfo{
		ID: pod.Name, UID: "uid-" + pod.Name, Namespace: "default", Name: pod.Name, ContainerID: "c-" + pod.Name,
		NetnsPath: pod.Path, Interfaces: []string{"eth0"}, HostIfindexes: []int{pod.HostIfindex},
		CaptureAll: true, IPv6: true,
	}
	got := p.Info()
	want.NetnsInode, want.NetnsCookie, want.BootID = got.NetnsInode, got.NetnsCookie, got.BootID
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Info (-want +got):\n%s", diff)
	}
	if got.NetnsInode == 0 || got.NetnsCookie == 0 || got.BootID == "" {
		t.Errorf("incomplete: %+v", got)
	}
	other, err := OpenNode(w.root)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	pods, err := other.Pods()
	if err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]PodInfo{want}, pods); diff != "" {
		t.Errorf("Pods (-want +got):\n%s", diff)
	}
}

func TestCheckNamesEveryMismatch(t *testing.T) {
	w := newWorld(t)
	pod := w.enrol(t, w.host.Pod(t, "pod"))
	if err := w.check(pod.bpf); err != nil {
		t.Errorf("intact: %v", err)
	}
	if err := pod.bpf.ClearListener(SlotHBONE6); err != nil {
		t.Error(err)
	}
	for _, pin := range []string{localLink, guardPin(pod.HostIfindex)} {
		if err := detachPin(filepath.Join(pod.bpf.dir, pin)); err != nil {
			t.Error(err)
		}
	}
	l, err := link.LoadPinnedLink(filepath.Join(pod.bpf.dir, dispatchLink), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.Detach(), l.Close()); err != nil {
		t.Error(err)
	}
	pod.Run(t, "ip", "rule", "del", "priority", "500")
	err = w.check(pod.bpf)
	for _, want := range []string{
		"slot hbone6 is empty", "link local: ", fmt.Sprintf("link guard_%d: ", pod.HostIfindex),
		"link dispatch: attached to 0", "no IPv4 rule 500",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want it to name %q", err, want)
		}
	}
	if t.Failed() {
		return
	}
	again := w.attach(t, pod.Pod, func(c *PodConfig) { c.Listeners = pod.proxy.fds(t) })
	if err := w.check(again); err != nil {
		t.Errorf("after attaching again: %v", err)
	}
}

func TestPodsWithoutIPv6NeedNone(t *testing.T) {
	w := newWorld(t)
	pod, member := w.host.Pod(t, "pod"), w.host.Pod(t, "member")
	pod.Sysctl(t, "net.ipv6.conf.all.disable_ipv6", "1")
	before := w.trace(t, pod)
	w.mesh(t, member)
	x := &proxy{node: w.Node, pod: pod}
	l := x.listen(t, netip.AddrPortFrom(hidden[false], 1))
	defer func() { _ = l.Close() }()
	p := w.attach(t, pod)
	for _, s := range []Slot{SlotOutbound4, SlotInbound4, SlotHBONE4} {
		if err := p.SetListener(s, fdOf(t, l)); err != nil {
			t.Error(err)
		}
	}
	if p.Info().IPv6 {
		t.Error("IPv6: got true, want false")
	}
	if err := w.check(p); err != nil {
		t.Error(err)
	}
	if err := w.DetachPod(pod.Name); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(before, w.trace(t, pod)); diff != "" {
		t.Errorf("after detaching (-before +after):\n%s", diff)
	}
}

func TestAttachingAgainInterruptsNothing(t *testing.T) {
	w := newWorld(t)
	client, server := w.enrol(t, w.host.Pod(t, "client")), w.host.Pod(t, "server")
	w.mesh(t, server)
	addr := netip.AddrPortFrom(server.Addr4, 80)
	open, err := client.Dial(context.Background(), "tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = open.Close() }()
	if _, err := testutil.Ask(open); err != nil {
		t.Fatal(err)
	}
	links, progs := client.linkIDs(t)
	captured := client.count(t, VerdictCaptured)

	stop := make(chan struct{})
	var wg sync.WaitGroup
	var made int
	wg.Go(func() {
		for ; ; made++ {
			select {
			case <-stop:
				return
			default:
				wantAnswer(t, client.NS, addr, "outbound@"+addr.String(), client.Addr4)
			}
		}
	})
	for range 20 {
		w.attach(t, client.Pod)
		if err := testutil.Ping(open); err != nil {
			t.Errorf("open connection: %v", err)
		}
	}
	close(stop)
	wg.Wait()
	if made < 20 {
		t.Errorf("only %d connections were made meanwhile", made)
	}
	if got := client.count(t, VerdictCaptured); got < captured+uint64(made) {
		t.Errorf("captured: got %d, want at least %d", got, captured+uint64(made))
	}
	linksNow, progsNow := client.linkIDs(t)
	if diff := cmp.Diff(links, linksNow); diff != "" {
		t.Errorf("links changed (-before +after):\n%s", diff)
	}
	for pin, id := range progsNow {
		if progs[pin] == id {
			t.Errorf("%s: the program is still the first one", pin)
		}
	}
}

// linkIDs returns the ids of the pod's links and of their programs, by pin.
func (e *enrolled) linkIDs(t *testing.T) (map[string]link.ID, map[string]ebpf.ProgramID) {
	t.Helper()
	pins, err := linkPins(e.bpf.dir)
	if err != nil {
		t.Fatal(err)
	}
	links, progs := map[string]link.ID{}, map[string]ebpf.ProgramID{}
	for _, pin := range pins {
		l, err := link.LoadPinnedLink(filepath.Join(e.bpf.dir, pin), nil)
		if err != nil {
			t.Fatal(err)
		}
		info, err := l.Info()
		if err != nil {
			t.Fatal(err)
		}
		links[pin], progs[pin] = info.ID, info.Program
		_ = l.Close()
	}
	return links, progs
}

func TestAttachingAgainAppliesSettings(t *testing.T) {
	w := newWorld(t)
	client, outside := w.enrol(t, w.host.Pod(t, "client")), w.host.Pod(t, "outside")
	w.mesh(t)
	addr := netip.AddrPortFrom(outside.Addr4, 80)
	outside.Echo(t, "outside", addr.String())
	wantAnswer(t, client.NS, addr, "outside", client.Addr4)
	w.attach(t, client.Pod, func(c *PodConfig) { c.CaptureAll, c.HostIfindexes = true, nil })
	wantAnswer(t, client.NS, addr, "outbound@"+addr.String(), client.Addr4)
	if _, err := os.Stat(filepath.Join(client.bpf.dir, guardPin(client.HostIfindex))); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("guard: got %v, want it gone", err)
	}
	p := w.attach(t, client.Pod)
	wantAnswer(t, client.NS, addr, "outside", client.Addr4)
	if err := w.check(p); err != nil {
		t.Error(err)
	}
}

func TestAttachingAgainFollowsInterfaces(t *testing.T) {
	w := newWorld(t)
	client, server := w.enrol(t, w.host.Pod(t, "client")), w.host.Pod(t, "server")
	w.mesh(t, server)
	old := client.Ifindex(t, "eth0")
	client.Run(t, "ip", "link", "del", "eth0")
	testutil.Veth(t,
		testutil.End{NS: client.NS, Name: "eth0", Addrs: []string{client.Addr4.String() + "/32"}},
		testutil.End{NS: w.host.NS, Name: "again", Addrs: []string{"10.77.0.1/32"}})
	client.Run(t, "ip", "route", "add", "10.77.0.1", "dev", "eth0")
	client.Run(t, "ip", "route", "add", "default", "via", "10.77.0.1")
	if err := w.check(client.bpf); err == nil || !strings.Contains(err.Error(), `interface "eth0": link capture_`) {
		t.Errorf("Check: got %v, want it to name eth0", err)
	}
	p := w.attach(t, client.Pod, func(c *PodConfig) { c.HostIfindexes = []int{w.host.Ifindex(t, "again")} })
	if err := w.check(p); err != nil {
		t.Errorf("Check after attaching again: %v", err)
	}
	if _, err := os.Stat(filepath.Join(p.dir, capturePin(old))); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("old link: got %v, want it gone", err)
	}
	addr := netip.AddrPortFrom(server.Addr4, 80)
	wantAnswer(t, client.NS, addr, "outbound@"+addr.String(), client.Addr4)
}

func TestSameIDInAnotherNamespaceStartsAnew(t *testing.T) {
	w := newWorld(t)
	first, second := w.host.Pod(t, "first"), w.host.Pod(t, "second")
	before := w.trace(t, first)
	w.attach(t, first, func(c *PodConfig) { c.ID = "pod" })
	p := w.attach(t, second, func(c *PodConfig) { c.ID = "pod" })
	if got := p.Info().NetnsPath; got != second.Path {
		t.Errorf("netns: got %q, want %q", got, second.Path)
	}
	if diff := cmp.Diff(before, w.trace(t, first)); diff != "" {
		t.Errorf("the first (-before +after):\n%s", diff)
	}
}

func TestSeveredPodsAreCollected(t *testing.T) {
	w := newWorld(t)
	gone, stays := w.host.Pod(t, "gone"), w.host.Pod(t, "stays")
	w.attach(t, gone)
	w.attach(t, stays)
	if removed, err := w.Collect(nil); err != nil || len(removed) > 0 {
		t.Errorf("Collect: got %v, %v, want none", removed, err)
	}
	gone.Delete(t)
	testutil.Eventually(t, 5*time.Second, func() error { // namespaces die in the background
		removed, err := w.Collect(nil)
		if err == nil && !slices.Equal(removed, []string{gone.Name}) {
			err = fmt.Errorf("removed: got %v, want %s", removed, gone.Name)
		}
		return err
	})
	if err := w.DetachPod(gone.Name); err != nil {
		t.Errorf("detach what was collected: %v", err)
	}
	removed, err := w.Collect(func(info PodInfo) bool { return info.ID != stays.Name })
	if err != nil || !slices.Equal(removed, []string{stays.Name}) {
		t.Errorf("Collect: got %v, %v, want %s", removed, err, stays.Name)
	}
	w.wantNoPins(t)
}

func TestDetachSucceedsWithoutNetns(t *testing.T) {
	w := newWorld(t)
	pod := w.host.Pod(t, "pod")
	w.attach(t, pod)
	pod.Delete(t)
	if err := w.DetachPod(pod.Name); err != nil {
		t.Error(err)
	}
	w.wantNoPins(t)
}

func TestPodsOfAnotherBootAndUnreadableOnesAreCollected(t *testing.T) {
	w := newWorld(t)
	old, broken := w.host.Pod(t, "old"), w.host.Pod(t, "broken")
	p := w.attach(t, old)
	info := p.Info()
	info.BootID = "another"
	if err := writeInfo(p.maps.Info, &info); err != nil {
		t.Fatal(err)
	}
	mustPut(t, w.attach(t, broken).maps.Info, uint32(0), make([]byte, maxInfoBytes))
	pods, err := w.Pods()
	if len(pods) != 1 || err == nil || !strings.Contains(err.Error(), broken.Name) {
		t.Errorf("Pods: got %v, %v, want one, and an error that names the other", pods, err)
	}
	removed, err := w.Collect(nil)
	want := []string{broken.Name, old.Name}
	if slices.Sort(removed); err != nil || !slices.Equal(removed, want) {
		t.Errorf("Collect: got %v, %v, want %v", removed, err, want)
	}
	w.wantNoPins(t)
}

// dieHalfWay leaves what a process leaves that is killed just before its commit.
func (w *world) dieHalfWay(t *testing.T, pod *testutil.Pod) {
	t.Helper()
	ns, err := netns.Open(pod.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ns.Close() }()
	lock, err := w.lockPod(pod.Name, true)
	if err != nil {
		t.Fatal(err)
	}
	cfg := w.config(pod)
	a := &attachment{node: w.Node, cfg: cfg, info: cfg.info(), ns: ns, captured: []int{pod.Ifindex(t, "eth0")}, lock: lock}
	w.host.MustDo(t, func() error {
		if err := ns.Do(func() error { return inspectNetns(ns, &a.info) }); err != nil {
			return err
		}
		if err := os.Mkdir(lock.newDir(), 0o700); err != nil {
			return err
		}
		return a.build(lock.newDir())
	})
	_ = lock.file.Close() // unlocks, as the end of a process does
}

func TestHalfMadePodsAreTakenAway(t *testing.T) {
	for name, cleanUp := range map[string]func(*world, *testutil.Pod) error{
		"by Collect": func(w *world, pod *testutil.Pod) error {
			removed, err := w.Collect(nil)
			if err == nil && !slices.Equal(removed, []string{pod.Name}) {
				err = fmt.Errorf("removed: got %v", removed)
			}
			return err
		},
		"by DetachPod": func(w *world, pod *testutil.Pod) error { return w.DetachPod(pod.Name) },
		"by AttachPod": func(w *world, pod *testutil.Pod) error {
			p, err := w.tryAttach(pod)
			if err != nil {
				return err
			}
			_ = p.Close()
			return w.DetachPod(pod.Name)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			pod := w.host.Pod(t, "pod")
			before := w.trace(t, pod)
			w.dieHalfWay(t, pod)
			if _, err := w.Pod(pod.Name); !errors.Is(err, ErrNotAttached) {
				t.Errorf("Pod: got %v, want %v", err, ErrNotAttached)
			}
			if err := cleanUp(w, pod); err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff(before, w.trace(t, pod)); diff != "" {
				t.Errorf("(-before +after):\n%s", diff)
			}
			w.wantNoPins(t)
		})
	}
}

func TestCollectLeavesPodsAloneThatAreBeingAttached(t *testing.T) {
	w := newWorld(t)
	lock, err := w.lockPod("busy", true)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(lock.newDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	if removed, err := w.Collect(nil); err != nil || len(removed) > 0 {
		t.Errorf("Collect: got %v, %v, want none", removed, err)
	}
	if _, err := os.Stat(lock.newDir()); err != nil {
		t.Error(err)
	}
	if err := os.Remove(lock.newDir()); err != nil {
		t.Error(err)
	}
	lock.release()
	w.wantNoPins(t)
}

// TestOnePodAtATime: callers of the same pod take turns, and the last word is a whole one.
func TestOnePodAtATime(t *testing.T) {
	w := newWorld(t)
	pod := w.host.Pod(t, "pod")
	before := w.trace(t, pod)
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			if i%2 == 0 {
				p, err := w.tryAttach(pod)
				if err != nil {
					t.Error(err)
					return
				}
				_ = p.Close()
				return
			}
			if err := w.DetachPod(pod.Name); err != nil {
				t.Error(err)
			}
			if _, err := w.Collect(nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if err := w.DetachPod(pod.Name); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(before, w.trace(t, pod)); diff != "" {
		t.Errorf("(-before +after):\n%s", diff)
	}
	w.wantNoPins(t)
}
