// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// wirings are ways to connect a pod to its host. Each makes two pods that the host reaches, and says from which
// addresses.
var wirings = map[string]func(t *testing.T, w *world) (pods [2]*testutil.Pod, host4, host6 netip.Addr){
	"ptp":     wirePTP,
	"bridge":  wireBridge,
	"macvlan": wireMacvlan,
}

func wirePTP(t *testing.T, w *world) ([2]*testutil.Pod, netip.Addr, netip.Addr) {
	pods := [2]*testutil.Pod{w.host.Pod(t, "a"), w.host.Pod(t, "b")}
	return pods, netip.MustParseAddr("10.77.0.1"), netip.MustParseAddr("fd77::1")
}

func wireBridge(t *testing.T, w *world) (pods [2]*testutil.Pod, host4, host6 netip.Addr) {
	w.host.Run(t, "ip", "link", "add", "br0", "type", "bridge")
	w.host.Run(t, "ip", "link", "set", "br0", "up")
	host4, host6 = addressDevice(t, w.host.NS, "br0", 1)
	for i := range pods {
		p := flatPod(t, i)
		p.HostIf = fmt.Sprintf("port%d", i)
		testutil.Veth(t,
			testutil.End{NS: p.NS, Name: "eth0", Addrs: []string{p.Addr4.String() + "/24", p.Addr6.String() + "/64"}},
			testutil.End{NS: w.host.NS, Name: p.HostIf})
		w.host.Run(t, "ip", "link", "set", p.HostIf, "master", "br0")
		p.HostIfindex = w.host.Ifindex(t, p.HostIf)
		pods[i] = p
	}
	return pods, host4, host6
}

// wireMacvlan gives the host a macvlan device of its own: the parent does not reach its children.
func wireMacvlan(t *testing.T, w *world) (pods [2]*testutil.Pod, host4, host6 netip.Addr) {
	testutil.Veth(t, testutil.End{NS: w.host.NS, Name: "parent"}, testutil.End{NS: testutil.NetNS(t, "switch"), Name: "parent"})
	w.host.Run(t, "ip", "link", "add", "link", "parent", "name", "shim", "type", "macvlan", "mode", "bridge")
	w.host.Run(t, "ip", "link", "set", "shim", "up")
	host4, host6 = addressDevice(t, w.host.NS, "shim", 1)
	for i := range pods {
		p := flatPod(t, i)
		w.host.Run(t, "ip", "link", "add", "link", "parent", "name", fmt.Sprint("child", i), "type", "macvlan", "mode", "bridge")
		w.host.Run(t, "ip", "link", "set", fmt.Sprint("child", i), "netns", p.Name, "name", "eth0")
		p.Run(t, "ip", "link", "set", "eth0", "up")
		addressDevice(t, p.NS, "eth0", i+2)
		pods[i] = p
	}
	return pods, host4, host6
}

// flatPod is a pod of a network that the host is in, too. Its eth0 is still to be made.
func flatPod(t *testing.T, i int) *testutil.Pod {
	return &testutil.Pod{
		NS:    testutil.NetNS(t, fmt.Sprint("flat", i)),
		Addr4: netip.AddrFrom4([4]byte{10, 88, 0, byte(i + 2)}),
		Addr6: netip.MustParseAddr(fmt.Sprintf("fd88::%x", i+2)),
	}
}

func addressDevice(t *testing.T, ns *testutil.NS, dev string, host int) (addr4, addr6 netip.Addr) {
	addr4 = netip.AddrFrom4([4]byte{10, 88, 0, byte(host)})
	addr6 = netip.MustParseAddr(fmt.Sprintf("fd88::%x", host))
	ns.Run(t, "ip", "addr", "add", addr4.String()+"/24", "dev", dev)
	ns.Run(t, "ip", "addr", "add", addr6.String()+"/64", "dev", dev, "nodad")
	return addr4, addr6
}
