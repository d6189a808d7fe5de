// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/installer/enroll"
	"github.com/sluice-mesh/sluice/internal/lab"
	"github.com/sluice-mesh/sluice/internal/leak"
	"github.com/sluice-mesh/sluice/internal/netns"
)

// watched is a mesh whose client, server and wire are under observation.
type watched struct {
	*mesh
	watch *leak.Watch
}

// newWatched brings a mesh up and watches it; the test fails if anything leaked, or if nothing was seen at all.
func newWatched(t *testing.T) *watched {
	t.Helper()
	w := &watched{mesh: newMesh(t)}
	w.watch = w.startWatch(w.points())
	t.Cleanup(func() {
		report, err := w.watch.Stop()
		if err != nil {
			t.Errorf("leak watch: %v", err)
		}
		if report.HBONE == 0 {
			t.Errorf("leak watch saw no mutual TLS in %d frames: it was not looking", report.Frames)
		}
		for _, l := range report.Leaks {
			t.Errorf("leaked: %v", l)
		}
		t.Logf("%d frames, %d of mutual TLS, %d leaks", report.Frames, report.HBONE, report.Count)
	})
	return w
}

// points are the wire and the host's ends of both pods.
func (m *mesh) points() []leak.Point {
	m.t.Helper()
	return []leak.Point{
		{NS: m.Nodes[0].NS, Interface: lab.WireIf},
		{NS: m.Nodes[0].NS, Interface: m.hostEnd(0, m.client), FromPod: true},
		{NS: m.Nodes[1].NS, Interface: m.hostEnd(1, m.server), FromPod: true},
	}
}

func (m *mesh) startWatch(points []leak.Point) *leak.Watch {
	m.t.Helper()
	w, err := leak.Start(m.members(m.client, m.server), points...)
	m.must(err)
	return w
}

func (m *mesh) members(pods ...*lab.Pod) (all []netip.Addr) {
	for _, p := range pods {
		all = append(all, p.Addr4, p.Addr6)
	}
	return all
}

// hostEnd is the name of the host's end of a pod's link.
func (m *mesh) hostEnd(node int, p *lab.Pod) (name string) {
	m.t.Helper()
	info := m.pinned(node, p)
	if info == nil || len(info.HostIfindexes) != 1 {
		m.t.Fatalf("pod %s has no pins, or no host end: %+v", p.Name, info)
	}
	m.must(lab.In(m.Nodes[node].NS, func() error {
		link, err := net.InterfaceByIndex(info.HostIfindexes[0])
		if err == nil {
			name = link.Name
		}
		return err
	}))
	return name
}

// pinned is what the pins tell of a pod; nil if it is not attached.
func (m *mesh) pinned(node int, p *lab.Pod) *bpf.PodInfo {
	m.t.Helper()
	n, err := bpf.OpenNode(m.Nodes[node].PinRoot())
	m.must(err)
	defer func() { _ = n.Close() }()
	infos, err := n.Pods()
	m.must(err)
	for _, info := range infos {
		if info.ContainerID == p.ContainerID {
			return &info
		}
	}
	return nil
}

// detachByHand takes a pod's programs off behind the agent's back.
func (m *mesh) detachByHand(node int, p *lab.Pod) {
	m.t.Helper()
	info := m.pinned(node, p)
	m.must(lab.In(m.Nodes[node].NS, func() error {
		n, err := bpf.OpenNode(m.Nodes[node].PinRoot())
		if err != nil {
			return err
		}
		defer func() { _ = n.Close() }()
		return n.DetachPod(info.ID)
	}))
}

// TestTheWatchSeesALeak: capture and guard are taken off on purpose. A watch that misses that proves nothing elsewhere.
func TestTheWatchSeesALeak(t *testing.T) {
	m := newMesh(t)
	m.wantReach("before")
	m.must(m.Nodes[0].Agent.Kill()) // it would repair
	points := m.points()
	m.detachByHand(0, m.client)
	for _, family := range []int{4, 6} {
		watch := m.startWatch(points)
		_, err := inside(m.client).AskFrom(echoOf(m.server, family))
		report, serr := watch.Stop()
		m.must(serr)
		if err != nil || report.Count == 0 {
			t.Errorf("IPv%d: %v; the watch saw %d leaks in %d frames, want some", family, err, report.Count, report.Frames)
		}
		for _, l := range report.Leaks {
			if !strings.Contains(l.Why, "in clear") {
				t.Errorf("IPv%d: got %v", family, l)
			}
		}
	}
}

// transfers is clients that open connection after connection and check what comes back, until stopped.
type transfers struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
	good   [2]atomic.Int64 // transfers, by family
	failed atomic.Int64    // connections refused or cut, as faults may
	wrong  atomic.Pointer[string]
}

// startTransfers moves random bytes through echo servers, over both families.
func (m *mesh) startTransfers() *transfers {
	m.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	tr := &transfers{cancel: cancel}
	ns, err := netns.Open(netns.NamedPath(m.client.NS))
	m.must(err)
	m.t.Cleanup(func() { tr.stop(); _ = ns.Close() })
	for i, family := range []int{4, 6} {
		addr := echoOf(m.server, family)
		tr.wg.Go(func() {
			for ctx.Err() == nil {
				switch err := tr.transfer(ctx, ns, addr); {
				case err == nil:
					tr.good[i].Add(1)
				default:
					tr.failed.Add(1)
					select { // a refusal comes at once: do not spin
					case <-ctx.Done():
					case <-time.After(10 * time.Millisecond):
					}
				}
			}
		})
	}
	return tr
}

// transfer sends a random block and checks the echo.
func (tr *transfers) transfer(ctx context.Context, ns *netns.NS, addr netip.AddrPort) error {
	var c net.Conn
	err := ns.Do(func() (err error) {
		d := net.Dialer{Timeout: 2 * time.Second}
		c, err = d.DialContext(ctx, "tcp", addr.String())
		return err
	})
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	for one := make([]byte, 1); one[0] != '\n'; { // the greeting
		if _, err := c.Read(one); err != nil {
			return err
		}
	}
	block := make([]byte, 64<<10)
	_, _ = rand.Read(block)
	go func() { _, _ = c.Write(block) }()
	got := make([]byte, len(block))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !bytes.Equal(got, block) {
		what := fmt.Sprintf("%v: the echo differs", addr)
		tr.wrong.Store(&what)
	}
	return nil
}

// wantMore waits until so many more transfers went well in each family.
func (tr *transfers) wantMore(t *testing.T, what string, n int64) {
	t.Helper()
	before := [2]int64{tr.good[0].Load(), tr.good[1].Load()}
	err := lab.Poll(30*time.Second, func() error {
		for i := range tr.good {
			if got := tr.good[i].Load() - before[i]; got < n {
				return fmt.Errorf("%d transfers over IPv%d, want %d", got, 4+2*i, n)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if wrong := tr.wrong.Load(); wrong != nil {
		t.Fatalf("%s: %s", what, *wrong)
	}
}

func (tr *transfers) stop() {
	tr.cancel()
	tr.wg.Wait()
}

// podStatus is what the agent says of a pod.
func (m *mesh) podStatus(node int, p *lab.Pod) (enroll.PodStatus, error) {
	n := m.Nodes[node]
	out, _ := m.Output(n.NS, effect, m.Bin("sluice-installer"), "status", "-o", "json", "--run-dir", n.RunDir(), "--state-dir", n.StateDir(), "--pin-root", n.PinRoot())
	var all enroll.Status
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		return enroll.PodStatus{}, fmt.Errorf("status: %w: %s", err, out)
	}
	for _, each := range all.Pods {
		if each.ContainerID == p.ContainerID {
			return each, nil
		}
	}
	return enroll.PodStatus{}, fmt.Errorf("the agent knows no pod %s", p.Name)
}

func (m *mesh) isServed(node int, p *lab.Pod) error {
	s, err := m.podStatus(node, p)
	if err == nil && s.Phase != "served" {
		err = fmt.Errorf("pod %s is %s, %s", p.Name, s.Phase, s.Problem)
	}
	return err
}

func (m *mesh) verdicts(node int, p *lab.Pod) map[string]uint64 {
	m.t.Helper()
	s, err := m.podStatus(node, p)
	m.must(err)
	return s.Verdicts
}

// isClsact tells whether a node's programs are filters, which root in a pod can delete.
func (m *mesh) isClsact(node int) bool {
	m.t.Helper()
	n, err := bpf.OpenNode(m.Nodes[node].PinRoot())
	m.must(err)
	defer func() { _ = n.Close() }()
	return n.AttachMode() == bpf.AttachClsact
}
