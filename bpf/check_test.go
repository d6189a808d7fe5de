// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
)

func TestInfoIsKept(t *testing.T) {
	w := newWorld(t)
	pod := w.host.Pod(t, "pod")
	p := w.attach(t, pod, func(c *PodConfig) { c.CaptureAll = true })
	want := PodInfo{
		ID: pod.Name, UID: "uid-" + pod.Name, Namespace: "default", Name: pod.Name, ContainerID: "c-" + pod.Name,
		NetnsPath: pod.Path, Interfaces: []string{"eth0"}, Captured: []Capture{{"eth0", pod.Ifindex(t, "eth0")}}, HostIfindexes: []int{pod.HostIfindex},
		CaptureAll: true, IPv6: true,
	}
	got := p.Info()
	want.NetnsInode, want.NetnsCookie, want.HostCookie, want.BootID = got.NetnsInode, got.NetnsCookie, got.HostCookie, got.BootID
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Info (-want +got):\n%s", diff)
	}
	if got.NetnsInode == 0 || got.NetnsCookie == 0 || got.HostCookie == 0 || got.BootID == "" {
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
		if err := w.detachPin(pod, pin); err != nil {
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
