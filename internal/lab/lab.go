// SPDX-License-Identifier: Apache-2.0

// Package lab builds two nodes on one machine out of network namespaces and runs the real binaries on them: what
// "make demo" shows and what the end-to-end tests break.
//
//	            NAME-client  NAME-legacy                              NAME-server
//	                 |eth0        |eth0                                    |eth0
//	                 +---cni0-----+  (bridge)                              |  (ptp)
//	NAME-outside ── NAME-node1 ──────────── wire ──────────────── NAME-node2
//	               agent, ztunnel       10.243.0.0/24           agent, ztunnel
//
// Pods are made by libcni through a real plugin chain that ends in sluice-cni. Each node has its own bpffs, pins, run
// and state folders below Dir; the folders of manifests, workloads and the CA are shared, as a network file system
// would share them. No namespace here has a route to the machine's own interfaces.
package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Addresses of the lab. Every lab has the same ones: its namespaces keep them apart.
var (
	OutsideAddr4 = netip.MustParseAddr("10.242.0.2")
	OutsideAddr6 = netip.MustParseAddr("fd00:10:242::2")
)

// Lab is two nodes and what hangs on them.
type Lab struct {
	// Name is the prefix of all network namespaces.
	Name string
	// Dir is the folder of all state: pid files, logs, pins, CNI configuration. Down removes it.
	Dir string
	// Build is the folder that holds bin/ and cni/.
	Build string
	// IPv6Only leaves IPv4 out of pods, nodes and wire. Set it before Up.
	IPv6Only bool

	Nodes [2]*Node
}

// New describes a lab; nothing is made yet.
func New(name, dir, build string) *Lab {
	l := &Lab{Name: name, Dir: dir, Build: build}
	for i := range l.Nodes {
		l.Nodes[i] = newNode(l, i+1)
	}
	return l
}

// Bin is the path of one of our binaries.
func (l *Lab) Bin(name string) string { return filepath.Join(l.Build, "bin", name) }

// Manifests is the shared folder that users put their YAML into.
func (l *Lab) Manifests() string { return filepath.Join(l.Dir, "shared", "manifests") }

// Workloads is the shared folder that agents write enrolled pods to.
func (l *Lab) Workloads() string { return filepath.Join(l.Dir, "shared", "workloads") }

// CA is the shared folder of the root key.
func (l *Lab) CA() string { return filepath.Join(l.Dir, "shared", "ca") }

// Logs is the folder of one NAME.log per process.
func (l *Lab) Logs() string { return filepath.Join(l.Dir, "logs") }

// NS is the full name of one of the lab's namespaces: "demo-client" for "client".
func (l *Lab) NS(short string) string { return l.Name + "-" + short }

// Up makes nodes, wire and outside host, starts an agent and a ztunnel on each node, and installs the plugin. On error
// what exists stays for inspection; Down removes it.
func (l *Lab) Up() error {
	if err := l.UpBare(); err != nil {
		return err
	}
	for _, n := range l.Nodes {
		if err := errors.Join(n.StartAgent(), n.StartZtunnel()); err != nil {
			return err
		}
	}
	for _, n := range l.Nodes {
		if err := n.WaitReady(); err != nil {
			return err
		}
		if err := n.Install(); err != nil {
			return err
		}
	}
	return nil
}

// UpBare makes nodes, wire and outside host with nothing of ours on them: pods get the plugin chain without us.
func (l *Lab) UpBare() error {
	for _, dir := range []string{l.Manifests(), l.Workloads(), l.CA(), l.Logs()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(l.CA(), 0o700); err != nil {
		return err
	}
	for _, n := range l.Nodes {
		if err := n.create(); err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
	}
	if err := l.wire(); err != nil {
		return err
	}
	return l.outside()
}

// wire joins the nodes and routes each other's pods over the wire.
func (l *Lab) wire() error {
	a, b := l.Nodes[0], l.Nodes[1]
	err := connect(
		end{a.NS, WireIf, l.prefixes(a.wirePrefix4(), a.wirePrefix6())},
		end{b.NS, WireIf, l.prefixes(b.wirePrefix4(), b.wirePrefix6())})
	if err != nil {
		return err
	}
	return errors.Join(
		l.addRoutes(a.NS, route{b.Pods4, b.Wire4}, route{b.Pods6, b.Wire6}),
		l.addRoutes(b.NS, route{a.Pods4, a.Wire4}, route{a.Pods6, a.Wire6}))
}

// outside attaches a host that is no pod to the first node; the second reaches it through the first.
func (l *Lab) outside() error {
	ns, node := l.NS("outside"), l.Nodes[0]
	if err := createNS(ns); err != nil {
		return err
	}
	gw4, gw6 := netip.MustParseAddr("10.242.0.1"), netip.MustParseAddr("fd00:10:242::1")
	err := connect(
		end{ns, "eth0", l.prefixes(netip.PrefixFrom(OutsideAddr4, 24), netip.PrefixFrom(OutsideAddr6, 64))},
		end{node.NS, "outside", l.prefixes(netip.PrefixFrom(gw4, 24), netip.PrefixFrom(gw6, 64))})
	if err != nil {
		return err
	}
	all4, all6 := netip.MustParsePrefix("10.240.0.0/12"), netip.MustParsePrefix("fd00:10::/32")
	return errors.Join(
		l.addRoutes(ns, route{all4, gw4}, route{all6, gw6}),
		l.addRoutes(l.Nodes[1].NS,
			route{netip.PrefixFrom(OutsideAddr4, 24).Masked(), node.Wire4},
			route{netip.PrefixFrom(OutsideAddr6, 64).Masked(), node.Wire6}))
}

// prefixes leaves out what the lab has none of.
func (l *Lab) prefixes(all ...netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(all, func(p netip.Prefix) bool { return l.IPv6Only && p.Addr().Is4() })
}

func (l *Lab) addRoutes(ns string, routes ...route) error {
	return addRoutes(ns, slices.DeleteFunc(routes, func(r route) bool { return l.IPv6Only && r.dst.Addr().Is4() })...)
}

// Write puts a file into the manifests folder, in one step, as "kubectl apply" would.
func (l *Lab) Write(name, content string) error {
	path := filepath.Join(l.Manifests(), name)
	aside := path + ".new"
	if err := os.WriteFile(aside, []byte(content), 0o644); err != nil {
		return err
	}
	return os.Rename(aside, path)
}

// Remove takes a file out of the manifests folder; it is no error if there is none.
func (l *Lab) Remove(name string) error {
	if err := os.Remove(filepath.Join(l.Manifests(), name)); err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}

// IsUp reports whether a lab of this name has state on the machine.
func (l *Lab) IsUp() bool {
	if _, err := os.Stat(l.Dir); err == nil {
		return true
	}
	return len(l.namespaces()) > 0
}

// namespaces lists the lab's named namespaces that exist.
func (l *Lab) namespaces() (names []string) {
	entries, err := os.ReadDir("/run/netns")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), l.Name+"-") {
			names = append(names, e.Name())
		}
	}
	return names
}
