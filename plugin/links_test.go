// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"testing"

	"github.com/sluice-mesh/sluice/internal/nodeapi"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// The host's end of a link is only what the kernel says is one, whatever prevResult claims.
func TestResolveLinks(t *testing.T) {
	testutil.RequireRoot(t)
	node := testutil.NewNode(t)
	pod := node.Pod(t, "pod")
	third := testutil.NetNS(t, "third")

	// macvlan: its parent's ifindex means something in the node's namespace, but it is no peer.
	node.Run(t, "ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1")
	node.Run(t, "ip", "link", "add", "mv0", "link", "up0", "type", "macvlan", "mode", "bridge")
	node.Run(t, "ip", "link", "set", "mv0", "netns", pod.Name, "name", "net1")
	pod.Run(t, "ip", "link", "add", "net2", "type", "bridge")
	// A veth that ends in somebody else's namespace, and one that never leaves the pod.
	testutil.Veth(t, testutil.End{NS: pod.NS, Name: "net3"}, testutil.End{NS: third, Name: "far"})
	pod.Run(t, "ip", "link", "add", "net4", "type", "veth", "peer", "name", "net5")

	for name, tc := range map[string]struct {
		interfaces []string
		want       string
	}{
		"veth":                   {[]string{"eth0"}, fmt.Sprintf("[eth0:%d]", pod.HostIfindex)},
		"macvlan":                {[]string{"net1"}, "[net1:0]"},
		"bridge":                 {[]string{"net2"}, "[net2:0]"},
		"veth to a third netns":  {[]string{"net3"}, "[net3:0]"},
		"veth within the pod":    {[]string{"net4", "net5"}, "[net4:0 net5:0]"},
		"several, with loopback": {[]string{"lo", "net1", "eth0"}, fmt.Sprintf("[net1:0 eth0:%d]", pod.HostIfindex)},
	} {
		t.Run(name, func(t *testing.T) {
			p := &nodeapi.Pod{Netns: pod.Path}
			for _, i := range tc.interfaces {
				p.Interfaces = append(p.Interfaces, nodeapi.Interface{Name: i})
			}
			node.MustDo(t, func() error { return resolveLinks(p) })
			got := []string{}
			for _, i := range p.Interfaces {
				got = append(got, fmt.Sprintf("%s:%d", i.Name, i.HostIfindex))
			}
			if fmt.Sprint(got) != tc.want {
				t.Errorf("got %v, want %s", got, tc.want)
			}
		})
	}
}
