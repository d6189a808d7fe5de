// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

func TestHostProbesReachTheApp(t *testing.T) {
	for name, wire := range wirings {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			pods, host4, host6 := wire(t, w)
			pod := w.enrol(t, pods[0], withAddresses(pods[0]), func(c *PodConfig) {
				if pods[0].HostIfindex == 0 {
					c.HostIfindexes = nil
				}
			})
			s := w.attachHost(t, HostConfig{Probe: true, ProbeCgroup: cgroupRoot(t)})
			wantHook(t, s.Probe)
			if !s.Probe.TrustsAll || s.Probe.Kind != HookCgroup {
				t.Errorf("got %+v, want it to trust all of the host", s.Probe)
			}
			for _, own := range map[string][2]netip.Addr{"4": {pod.Addr4, host4}, "6": {pod.Addr6, host6}} {
				addr := netip.AddrPortFrom(own[0], 80)
				pod.Echo(t, "app", addr.String())
				for range 3 {
					wantAnswer(t, w.host.NS, addr, "app", own[1])
					wantAnswer(t, pods[1].NS, addr, "inbound@"+addr.String(), netip.Addr{})
				}
			}
			addr4 := netip.AddrPortFrom(pod.Addr4, 80)
			if got := askMapped(t, w.host.NS, addr4); got.Name != "app" || got.From.Addr().Unmap() != host4 {
				t.Errorf("mapped: got %q from %v, want app from %v", got.Name, got.From, host4)
			}
			pod.wantVerdict(t, VerdictProbe, 7)
			// Long after the start, too.
			conn, err := w.host.Dial(context.Background(), "tcp", addr4.String())
			if err != nil {
				t.Fatal(err)
			}
			if got, err := testutil.Ask(conn); err != nil || got.Name != "app" {
				t.Errorf("got %q, %v", got.Name, err)
			}
			if err := errors.Join(w.DetachHost(), testutil.Ping(conn), conn.Close()); err != nil {
				t.Errorf("open probe: %v", err)
			}
			wantAnswer(t, w.host.NS, addr4, "inbound@"+addr4.String(), host4)
		})
	}
}

// TestForwardedTrafficIsNoProbe: the host's address and the port of a probe, but a pod's connection.
func TestForwardedTrafficIsNoProbe(t *testing.T) {
	for _, mode := range []string{HookCgroup, HookHostEnd} {
		t.Run(mode, func(t *testing.T) {
			eachFamily(t, func(t *testing.T, family string) { testForwarded(t, mode, family) })
		})
	}
}

func testForwarded(t *testing.T, mode, family string) {
	w := newWorld(t)
	pod, legacy := w.host.Pod(t, "pod"), w.host.Pod(t, "legacy")
	w.attachProbe(t, mode)
	server := w.enrol(t, pod, withAddresses(pod))
	gateway, nft := netip.MustParseAddr("10.77.0.1"), "ip"
	if family == "6" {
		gateway, nft = netip.MustParseAddr("fd77::1"), "ip6"
	}
	app := netip.AddrPortFrom(server.Addr(family), 80)
	server.Echo(t, "app", app.String())

	probe, err := w.host.Dial(context.Background(), "tcp", app.String())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := testutil.Ask(probe); err != nil || got.Name != "app" {
		t.Fatalf("probe: got %q, %v, want app", got.Name, err)
	}
	from := addrPortOf(probe.LocalAddr())
	// By a reset: ends that say goodbye when the NAT below is there would be taken for the port's new connection.
	if err := probe.(*net.TCPConn).SetLinger(0); err != nil {
		t.Fatal(err)
	}
	if err := probe.Close(); err != nil {
		t.Fatal(err)
	}
	if mode == HookCgroup {
		testutil.Eventually(t, 20*time.Second, func() error {
			if n := w.probes(t); n != 0 {
				return fmt.Errorf("%d probes are remembered after they closed", n)
			}
			return nil
		})
	}
	// Only now, so that nothing keeps the port from being used again.
	w.host.Run(t, "nft", fmt.Sprintf(`table %s nat {
		chain in { type nat hook prerouting priority dstnat; %s daddr %s tcp dport 8080 dnat to %s; }
		chain out { type nat hook postrouting priority srcnat; %s saddr %s tcp dport 80 snat to %s; }
	}`, nft, nft, gateway, app, nft, legacy.Addr(family), from))
	wantAnswer(t, legacy.NS, netip.AddrPortFrom(gateway, 8080), "inbound@"+app.String(), gateway)
	w.host.Run(t, "nft", "delete", "table", nft, "nat")
	w.host.Run(t, "nft", fmt.Sprintf(`table %s nat { chain out { type nat hook postrouting priority srcnat; %s saddr %s masquerade; }
	}`,
		nft, nft, legacy.Addr(family)))
	wantAnswer(t, legacy.NS, app, "inbound@"+app.String(), gateway)
	wantAnswer(t, w.host.NS, app, "app", gateway)
}

// attachProbe attaches probe in one of its kinds.
func (w *world) attachProbe(t *testing.T, kind string) {
	t.Helper()
	cfg := HostConfig{Probe: true, ProbeCgroup: cgroupRoot(t)}
	if kind == HookHostEnd {
		cfg = HostConfig{Probe: true, Cgroup: t.TempDir()}
	}
	if got := w.attachHost(t, cfg).Probe; got.Kind != kind || !got.Attached || !got.TrustsAll || (got.Problem != "") != (kind == HookHostEnd) {
		t.Fatalf("got %+v, want it of kind %s", got, kind)
	}
}

func TestProbesOfOneCgroup(t *testing.T) {
	w := newWorld(t)
	pod := w.host.Pod(t, "pod")
	w.enrol(t, pod, withAddresses(pod))
	addr := netip.AddrPortFrom(pod.Addr4, 80)
	pod.Echo(t, "app", addr.String())
	kubelet := mustCgroup(t)
	cfg := HostConfig{Probe: true, ProbeCgroup: kubelet}
	s := w.attachHost(t, cfg)
	wantHook(t, s.Probe)
	if s.Probe.TrustsAll || s.Probe.Cgroup != kubelet {
		t.Errorf("got %+v, want only %q trusted", s.Probe, kubelet)
	}
	check := func(inside string) {
		t.Helper()
		if got := w.answerIn(t, kubelet, addr); got != inside {
			t.Errorf("inside: got %q, want %q", got, inside)
		}
		if got, want := w.answerIn(t, "", addr), "inbound@"+addr.String(); got != want {
			t.Errorf("outside: got %q, want %q", got, want)
		}
	}
	check("app")
	wantHook(t, w.hostStatus(t).Probe)

	removeCgroup(t, kubelet)
	if got := w.hostStatus(t).Probe; got.Attached || !strings.Contains(got.Problem, "attach again") {
		t.Errorf("removed: got %+v", got)
	}
	if err := os.Mkdir(kubelet, 0o755); err != nil {
		t.Fatal(err)
	}
	if got := w.hostStatus(t).Probe; got.Attached || !strings.Contains(got.Problem, "attach again") {
		t.Errorf("made anew: got %+v", got)
	}
	check("inbound@" + addr.String())
	wantHook(t, w.attachHost(t, cfg).Probe)
	check("app")
	wantHook(t, w.hostStatus(t).Probe)
}

// TestAddressUsedAgain: the entry of an address belongs to the pod that has it now, in whichever order its pods come
// and go.
func TestAddressUsedAgain(t *testing.T) {
	w := newWorld(t)
	first, second := w.host.Pod(t, "first"), w.host.Pod(t, "second")
	w.attachHost(t, HostConfig{Probe: true, ProbeCgroup: cgroupRoot(t)})
	w.enrol(t, first, withAddresses(first))
	addr := netip.AddrPortFrom(first.Addr4, 80)
	first.Echo(t, "first", addr.String())
	wantAnswer(t, w.host.NS, addr, "first", netip.Addr{})

	// The address moves before the first pod is detached.
	first.Run(t, "ip", "addr", "flush", "dev", "eth0", "scope", "global")
	w.host.Route(t, netip.PrefixFrom(first.Addr4, 32), netip.Addr{}, second.HostIf)
	second.Run(t, "ip", "addr", "add", first.Addr4.String()+"/32", "dev", "eth0")
	moved := w.enrol(t, second)
	second.Echo(t, "second", addr.String())
	if err := moved.bpf.SetAddresses([]netip.Addr{first.Addr4}); err != nil {
		t.Fatal(err)
	}
	if err := w.DetachPod(first.Name); err != nil {
		t.Fatal(err)
	}
	wantAnswer(t, w.host.NS, addr, "second", netip.Addr{})
	got, err := w.podAddresses()
	if err != nil {
		t.Fatal(err)
	}
	if want := moved.bpf.Info().NetnsCookie; len(got) != 1 || got[newAddress(first.Addr4)] != want {
		t.Errorf("addresses: got %v, want one of %d", got, want)
	}
	w.attach(t, second) // without saying addresses
	wantAnswer(t, w.host.NS, addr, "second", netip.Addr{})
	if err := w.DetachPod(second.Name); err != nil {
		t.Fatal(err)
	}
	if left, err := w.registered(); err != nil || len(left) > 0 {
		t.Errorf("entered: got %v, %v, want none", left, err)
	}
}

// TestAttachHostEntersThePods: those of a release that did not, and not those that are gone.
func TestAttachHostEntersThePods(t *testing.T) {
	w := newWorld(t)
	pod := w.host.Pod(t, "pod")
	p := w.attach(t, pod, withAddresses(pod))
	if err := w.unregister(&p.info); err != nil {
		t.Fatal(err)
	}
	stale := PodInfo{NetnsCookie: 1, Addresses: []netip.Addr{netip.MustParseAddr("10.77.0.99")}}
	if err := w.register(&stale); err != nil {
		t.Fatal(err)
	}
	w.attachHost(t, HostConfig{Probe: true})
	left, err := w.registered()
	if err != nil || len(left) != 1 || left[0] != p.info.NetnsCookie {
		t.Errorf("entered: got %v, %v, want %d", left, err, p.info.NetnsCookie)
	}
	if addrs, err := w.podAddresses(); err != nil || len(addrs) != 2 {
		t.Errorf("addresses: got %v, %v, want two", addrs, err)
	}
}

// TestRepeatedSYNIsAProbe: also when it comes so late that the record of the first one no longer counts.
func TestRepeatedSYNIsAProbe(t *testing.T) {
	w := newWorld(t)
	pod := w.host.Pod(t, "pod")
	w.enrol(t, pod, withAddresses(pod))
	w.attachProbe(t, HookCgroup)
	addr := netip.AddrPortFrom(pod.Addr4, 80)
	pod.Echo(t, "app", addr.String())
	pod.Run(t, "nft", `table ip f { chain in { type filter hook prerouting priority -300; tcp dport 80 drop; }
	}`)
	answer := make(chan string)
	go func() {
		got, err := w.host.AskFrom(addr)
		answer <- fmt.Sprint(got.Name, err)
	}()
	var flow captureFlow
	testutil.Eventually(t, 20*time.Second, func() error { return w.maps.ProbeFlows.NextKey(nil, &flow) })
	mustPut(t, w.maps.ProbeFlows, flow, ago(t, uint64(time.Hour)))
	pod.Run(t, "nft", "delete", "table", "ip", "f")
	if got, want := <-answer, fmt.Sprint("app", nil); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
