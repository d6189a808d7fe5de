// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/json"
	"net/netip"
	"os"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
)

// Network is a further network of pods, as Multus attaches one: a bridge of its own, and our plugin behind it.
type Network struct {
	Name    string // of the network, and of its bridge
	Subnets []netip.Prefix
}

// AddNetwork runs ADD of a further network for a pod that has one, as interface ifname.
func (n *Node) AddNetwork(p *Pod, w Network, ifname string) (addrs []netip.Addr, err error) {
	var result types.Result
	err = n.further(p, w, ifname, func(ctx context.Context, c *libcni.CNIConfig, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) (err error) {
		result, err = c.AddNetworkList(ctx, list, rt)
		return err
	})
	if err != nil {
		return nil, err
	}
	r, err := current.NewResultFromResult(result)
	if err != nil {
		return nil, err
	}
	for _, ip := range r.IPs {
		addr, _ := netip.AddrFromSlice(ip.Address.IP)
		addrs = append(addrs, addr.Unmap())
	}
	return addrs, nil
}

// DelNetwork runs DEL of a further network.
func (n *Node) DelNetwork(p *Pod, w Network, ifname string) error {
	return n.further(p, w, ifname, func(ctx context.Context, c *libcni.CNIConfig, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) error {
		return c.DelNetworkList(ctx, list, rt)
	})
}

func (n *Node) further(p *Pod, w Network, ifname string, f func(context.Context, *libcni.CNIConfig, *libcni.NetworkConfigList, *libcni.RuntimeConf) error) error {
	list, err := n.networkList(w)
	if err != nil {
		return err
	}
	rt := n.runtimeConf(p)
	rt.IfName, rt.CapabilityArgs = ifname, nil
	return n.chain(func(ctx context.Context, c *libcni.CNIConfig, _ *libcni.NetworkConfigList) error {
		return f(ctx, c, list, rt)
	})
}

// networkList ends in the entry that install put behind the node's own plugins.
func (n *Node) networkList(w Network) (*libcni.NetworkConfigList, error) {
	data, err := os.ReadFile(n.ConflistPath())
	if err != nil {
		return nil, err
	}
	var primary struct {
		Plugins []map[string]any `json:"plugins"`
	}
	if err := json.Unmarshal(data, &primary); err != nil {
		return nil, err
	}
	var ranges [][]map[string]string
	for _, s := range w.Subnets {
		ranges = append(ranges, []map[string]string{{"subnet": s.String()}})
	}
	plugins := []any{map[string]any{
		"type": "bridge", "bridge": w.Name, "isGateway": true,
		"ipam": map[string]any{"type": "host-local", "dataDir": n.path("ipam"), "ranges": ranges},
	}}
	for _, p := range primary.Plugins {
		if p["type"] == "sluice-cni" {
			plugins = append(plugins, p)
		}
	}
	data, err = json.Marshal(map[string]any{"cniVersion": "1.1.0", "name": w.Name, "plugins": plugins})
	if err != nil {
		return nil, err
	}
	return libcni.NetworkConfFromBytes(data)
}
