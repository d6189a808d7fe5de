// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// secondLink gives a pod net1, whose other end is on the node.
func (w *world) secondLink(t *testing.T, pod *testutil.Pod) (hostIfindex int) {
	t.Helper()
	testutil.Veth(t,
		testutil.End{NS: pod.NS, Name: "net1", Addrs: []string{"10.78.0.2/32"}},
		testutil.End{NS: w.host.NS, Name: "second", Addrs: []string{"10.78.0.1/32"}})
	return w.host.Ifindex(t, "second")
}

// TestLeavingANameOutGivesNothingUp: whoever looks for the pod's interfaces by name does not find one that the pod has
// renamed, and asks for the others only.
func TestLeavingANameOutGivesNothingUp(t *testing.T) {
	w := newWorld(t)
	client, server := w.enrol(t, w.host.Pod(t, "client")), w.host.Pod(t, "server")
	w.mesh(t, server)
	wire := sniff(t, w.host.NS, server.HostIf)
	w.secondLink(t, client.Pod)
	client.Run(t, "ip", "link", "set", "eth0", "name", "real")
	again := w.attach(t, client.Pod, func(c *PodConfig) { c.Interfaces = []string{"net1"} })
	if got, want := again.Info().Interfaces, []string{"net1", "eth0"}; !slices.Equal(got, want) {
		t.Errorf("interfaces: got %v, want %v", got, want)
	}
	if err := w.check(again); err != nil {
		t.Errorf("Check: %v", err)
	}
	eachFamily(t, func(t *testing.T, family string) {
		addr := netip.AddrPortFrom(server.Addr(family), 80)
		server.Echo(t, "server", addr.String())
		wantAnswer(t, client.NS, addr, "outbound@"+addr.String(), client.Addr(family))
	})
	wire.wantNone(t, client.Pod, server)
}

// TestUnrecordedCapturesStay: an AttachPod that fails half-way has attached what it did not write down.
func TestUnrecordedCapturesStay(t *testing.T) {
	w := newWorld(t)
	pod := w.host.Pod(t, "pod")
	w.secondLink(t, pod)
	p := w.attach(t, pod)
	info := p.Info()
	info.Captured = nil
	if err := writeInfo(p.maps.Info, &info); err != nil {
		t.Fatal(err)
	}
	pod.Run(t, "ip", "link", "set", "eth0", "name", "real")
	again := w.attach(t, pod, func(c *PodConfig) { c.Interfaces = []string{"net1"} })
	eth0 := pod.Ifindex(t, "real")
	if err := w.attached(pod, again, capturePin(eth0)); err != nil {
		t.Errorf("capture: %v", err)
	}
	if !slices.Contains(again.info.ifindexes(), eth0) {
		t.Errorf("record: got %v, want %d among them", again.info.Captured, eth0)
	}
}

func TestReleaseInterfaceGoesByWhatWasAttached(t *testing.T) {
	w := newWorld(t)
	client, server := w.enrol(t, w.host.Pod(t, "client")), w.host.Pod(t, "server")
	w.mesh(t, server)
	second := w.secondLink(t, client.Pod)
	p := w.attach(t, client.Pod, func(c *PodConfig) {
		c.Interfaces, c.HostIfindexes = []string{"eth0", "net1"}, []int{client.HostIfindex, second}
	})
	eth0, net1 := client.Ifindex(t, "eth0"), client.Ifindex(t, "net1")
	// By its names now, net1 is what leads to the mesh.
	for _, swap := range [][2]string{{"net1", "x"}, {"eth0", "net1"}} {
		client.Run(t, "ip", "link", "set", swap[0], "name", swap[1])
	}
	for range 2 { // the second time there is nothing left to do
		if err := w.host.Do(func() error { return w.ReleaseInterface(client.Name, "net1") }); err != nil {
			t.Error(err)
		}
	}
	for _, pin := range []string{capturePin(net1), guardPin(second)} {
		if _, err := os.Stat(filepath.Join(p.dir, pin)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: got %v, want it gone", pin, err)
		}
	}
	for _, pin := range []string{capturePin(eth0), guardPin(client.HostIfindex)} {
		if err := w.attached(client.Pod, p, pin); err != nil {
			t.Error(err)
		}
	}
	now, err := w.Pod(client.Name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = now.Close() }()
	info := now.Info()
	if !slices.Equal(info.Interfaces, []string{"eth0"}) || !slices.Equal(info.HostIfindexes, []int{client.HostIfindex}) {
		t.Errorf("got %v, %v, want eth0 and its host end only", info.Interfaces, info.HostIfindexes)
	}
	if err := w.check(now); err != nil {
		t.Errorf("Check: %v", err)
	}
	addr := netip.AddrPortFrom(server.Addr4, 80)
	wantAnswer(t, client.NS, addr, "outbound@"+addr.String(), client.Addr4)

	err = w.host.Do(func() error { return w.ReleaseInterface(client.Name, "eth0") })
	if err == nil || !strings.Contains(err.Error(), "only interface") {
		t.Errorf("the last one: got %v, want a refusal", err)
	}
	if err := w.ReleaseInterface("nobody", "eth0"); err != nil {
		t.Errorf("a pod that is not attached: %v", err)
	}
}
