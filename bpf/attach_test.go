// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

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
	wire := sniff(t, w.host.NS, server.HostIf)
	for i := range 20 { // two versions of capture, in turns
		w.attach(t, client.Pod, func(c *PodConfig) { c.CaptureAll = i%2 == 0 })
		if err := testutil.Ping(open); err != nil {
			t.Errorf("open connection: %v", err)
		}
	}
	close(stop)
	wg.Wait()
	wire.wantNone(t, client.Pod, server)
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
		p, err := loadPin(filepath.Join(e.bpf.dir, pin))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = p.Close() }()
		if prog, ok := p.(*ebpf.Program); ok { // a filter, which has no link
			progs[pin] = mustID(t, prog)
			continue
		}
		info, err := p.(link.Link).Info()
		if err != nil {
			t.Fatal(err)
		}
		links[pin], progs[pin] = info.ID, info.Program
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
