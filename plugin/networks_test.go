// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"testing"

	"github.com/sluice-mesh/sluice/internal/nodeapi"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// storage is the configuration of a pod's second network.
var storage = map[string]any{"name": "storage"}

// network is the sandbox as Multus names it in the ADD of another network.
func (s *sandbox) network(ifName, address string) *sandbox {
	second := *s
	second.ifName = ifName
	second.prev = fmt.Sprintf(`{"cniVersion":"1.1.0","interfaces":[{"name":%q,"sandbox":%q}],"ips":[{"interface":0,"address":%q}]}`, ifName, s.netns, address)
	return &second
}

// wantCaptured wants one pod, enrolled by the network, with these interfaces; those that are guarded have a host's end.
func (l *lab) wantCaptured(network string, interfaces, guarded []string) {
	l.t.Helper()
	pods, err := l.bpfNode.Pods()
	if err != nil || len(pods) != 1 {
		l.t.Fatalf("pods: %+v, %v", pods, err)
	}
	got := slices.Sorted(slices.Values(pods[0].Interfaces))
	if !slices.Equal(got, interfaces) || pods[0].Network != network || len(pods[0].HostIfindexes) != len(guarded) {
		l.t.Errorf("got %+v, want interfaces %v of network %s, host ends of %v", pods[0], interfaces, network, guarded)
	}
}

// Multus calls us once for each network of a pod. The second must not cost the first its capture, nor must its DEL.
func TestSecondNetworkOfAPod(t *testing.T) {
	l := newLab(t)
	s, pod := l.sandbox("mesh", "p")
	testutil.Veth(t, testutil.End{NS: pod.NS, Name: "net1"}, testutil.End{NS: l.node.NS, Name: "storage0"})
	before := l.snapshot(pod.NS)
	l.cni("ADD", s, nil).wantOK(t)
	once := l.snapshot(pod.NS)
	l.agent.verbs()

	second := s.network("net1", "10.9.0.2/24")
	captured := func(want ...string) { t.Helper(); l.wantCaptured("pods", want, want) }
	o := l.cni("ADD", second, storage).wantOK(t)
	wantSameJSON(t, []byte(o.stdout), []byte(second.prev))
	captured("eth0", "net1")
	l.cni("CHECK", second, storage).wantOK(t)
	l.cni("CHECK", s, nil).wantOK(t)
	l.agent.wantVerbs(nodeapi.VerbDecide) // it is served already

	l.cni("GC", noSandbox, map[string]any{"name": "storage", "cni.dev/valid-attachments": []string{}}).wantOK(t)
	captured("eth0", "net1")
	l.agent.verbs()
	for range 2 {
		l.cni("DEL", second, storage).wantOK(t)
		captured("eth0")
	}
	l.agent.wantVerbs()
	wantSame(t, "after the DEL of the second network", l.snapshot(pod.NS), once)
	l.cni("CHECK", s, nil).wantOK(t)

	l.cni("ADD", second, storage).wantOK(t)
	l.cni("DEL", s, nil).wantOK(t)
	l.cni("DEL", second, storage).wantOK(t)
	l.wantAttached()
	wantSame(t, "after all", l.snapshot(pod.NS), before)
}

// twoNetworks is a pod with eth0 and net1, both with the other end on the node.
func (l *lab) twoNetworks() (*sandbox, *testutil.Pod) {
	s, pod := l.sandbox("mesh", "p")
	testutil.Veth(l.t, testutil.End{NS: pod.NS, Name: "net1", Addrs: []string{"10.9.0.2/24"}}, testutil.End{NS: l.node.NS, Name: "storage0"})
	return s, pod
}

// The namespace is enrolled between the ADDs of a pod's two networks. The agent knows the first one, and says so.
func TestSecondNetworkEnrolsTheFirst(t *testing.T) {
	l := newLab(t)
	s, pod := l.twoNetworks()
	pod.Run(t, "ip", "addr", "flush", "dev", "eth0") // so that only the agent can know
	before := l.snapshot(pod.NS)
	second := s.network("net1", "10.9.0.2/24")
	l.agent.put(nodeapi.VerbDecide, func(r *nodeapi.Request) (nodeapi.Answer, *nodeapi.Error) {
		known := []nodeapi.Interface{{Name: "eth0"}, {Name: "gone"}, {Name: "lo"}, {Name: "net1"}}
		d := &nodeapi.Decision{Enrolled: true, PinID: r.Pod.UID, Interfaces: known}
		return nodeapi.Answer{Response: nodeapi.Response{Decision: d}}, nil
	})
	l.cni("ADD", second, storage).wantOK(t)
	both := []string{"eth0", "net1"}
	l.wantCaptured("storage", both, both)
	l.cni("CHECK", second, storage).wantOK(t)
	l.cni("DEL", s, nil).wantOK(t)
	l.wantCaptured("storage", both[1:], both[1:])
	l.cni("DEL", second, storage).wantOK(t)
	l.wantAttached()
	wantSame(t, "after all", l.snapshot(pod.NS), before)
}

// The agent was away during the first ADD, and cannot tell. What has an address is captured all the same.
func TestSecondNetworkEnrolsWhatNobodyLists(t *testing.T) {
	l := newLab(t)
	s, pod := l.twoNetworks()
	pod.Run(t, "ip", "link", "add", "mute", "type", "bridge")
	pod.Run(t, "ip", "link", "add", "egress", "type", "bridge")
	pod.Run(t, "ip", "addr", "add", "169.254.172.2/22", "dev", "egress")
	second := s.network("net1", "10.9.0.2/24")
	all, guarded := []string{"egress", "eth0", "net1"}, []string{"eth0", "net1"}
	l.cni("ADD", second, storage).wantOK(t)
	l.wantCaptured("storage", all, guarded)

	// By now the pod runs. What it makes itself is its own affair.
	pod.Run(t, "ip", "addr", "add", "10.200.0.1/24", "dev", "mute")
	l.cni("ADD", second, storage).wantOK(t)
	l.wantCaptured("storage", all, guarded)
}
