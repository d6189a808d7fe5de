// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// WireIf is the name of the interface between the nodes, on both.
const WireIf = "wire"

const (
	// readyTimeout bounds the start of agent and ztunnel.
	readyTimeout = 30 * time.Second
	// stopGrace is how long a process may take to end after SIGTERM.
	stopGrace = 15 * time.Second
)

// Node is a network namespace with an agent, a ztunnel and a CNI configuration of its own.
type Node struct {
	// Name is "node1"; NS is its namespace.
	Name, NS     string
	Wire4, Wire6 netip.Addr
	Pods4, Pods6 netip.Prefix

	lab      *Lab
	index    int
	plugin   string // the main CNI plugin
	Agent    *Proc
	Ztunnel  *Proc
	agents   int // started so far; names the next one's log
	ztunnels int
	offset   int // of the ports of ztunnel's pages
}

func newNode(l *Lab, i int) *Node {
	name := fmt.Sprintf("node%d", i)
	return &Node{
		Name: name, NS: l.NS(name), lab: l, index: i,
		plugin: map[int]string{1: "bridge", 2: "ptp"}[i],
		Wire4:  netip.AddrFrom4([4]byte{10, 243, 0, byte(i)}),
		Wire6:  netip.MustParseAddr(fmt.Sprintf("fd00:10:243::%d", i)),
		Pods4:  netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i), 0}), 24),
		Pods6:  netip.MustParsePrefix(fmt.Sprintf("fd00:10:244:%d::/64", i)),
	}
}

func (n *Node) wirePrefix4() netip.Prefix { return netip.PrefixFrom(n.Wire4, 24) }
func (n *Node) wirePrefix6() netip.Prefix { return netip.PrefixFrom(n.Wire6, 64) }

// path is a file or folder of the node's own.
func (n *Node) path(parts ...string) string {
	return filepath.Join(append([]string{n.lab.Dir, n.Name}, parts...)...)
}

// RunDir holds the sockets.
func (n *Node) RunDir() string { return n.path("run") }

// StateDir outlives agent restarts.
func (n *Node) StateDir() string { return n.path("state") }

// BinDir is where the runtime finds CNI plugins, ours included once installed.
func (n *Node) BinDir() string { return n.path("cni", "bin") }

// NetDir is where the runtime finds the conflist.
func (n *Node) NetDir() string { return n.path("cni", "net.d") }

// PinRoot is on the node's own bpffs.
func (n *Node) PinRoot() string { return filepath.Join(n.bpffs(), "sluice", "v1") }

// AgentSocket is where plugin and ztunnel reach the agent.
func (n *Node) AgentSocket() string { return filepath.Join(n.RunDir(), "agent.sock") }

func (n *Node) bpffs() string { return n.path("bpf") }

// create makes the namespace, the folders and the bpffs.
func (n *Node) create() error {
	if err := createNS(n.NS); err != nil {
		return err
	}
	err := In(n.NS, func() error {
		for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv6/conf/default/forwarding"} {
			if err := sysctl(key, "1"); err != nil {
				return err
			}
		}
		return unreachable()
	})
	if err != nil {
		return err
	}
	for _, dir := range []string{n.RunDir(), n.StateDir(), n.NetDir(), n.BinDir(), n.bpffs()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("bpf", n.bpffs(), "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount bpffs on %q: %w", n.bpffs(), err)
	}
	if err := n.linkPlugins(); err != nil {
		return err
	}
	return n.writeConflist()
}

// linkPlugins puts the plugins that are not ours where the runtime looks.
func (n *Node) linkPlugins() error {
	entries, err := os.ReadDir(filepath.Join(n.lab.Build, "cni"))
	if err != nil {
		return fmt.Errorf("%w (make build makes it)", err)
	}
	for _, e := range entries {
		if err := os.Symlink(filepath.Join(n.lab.Build, "cni", e.Name()), filepath.Join(n.BinDir(), e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// agentFlags are the paths that the agent and its install command share.
func (n *Node) agentFlags() []string {
	return []string{
		"--run-dir", n.RunDir(), "--state-dir", n.StateDir(), "--pin-root", n.PinRoot(),
	}
}

// StartAgent starts an agent on the node.
func (n *Node) StartAgent() (err error) {
	n.agents++
	argv := append([]string{n.lab.Bin("sluice-installer"), "agent"}, n.agentFlags()...)
	n.Agent, err = n.lab.Start(n.NS, n.numbered("agent", n.agents), append(argv, "--node-name", n.Name,
		"--manifests", n.lab.Manifests(), "--workloads", n.lab.Workloads(), "--ca-dir", n.lab.CA())...)
	return err
}

// Install puts plugin and conflist entry into the node's CNI folders.
func (n *Node) Install() error {
	return n.installer("install", "--cni-bin-dir", n.BinDir(), "--cni-conf-dir", n.NetDir(), "--plugin", n.lab.Bin("sluice-cni"))
}

// Uninstall takes them out again.
func (n *Node) Uninstall() error {
	return n.installer("uninstall", "--cni-bin-dir", n.BinDir(), "--cni-conf-dir", n.NetDir())
}

func (n *Node) installer(verb string, args ...string) error {
	argv := append([]string{n.lab.Bin("sluice-installer"), verb}, n.agentFlags()...)
	out, err := n.lab.Output(n.NS, readyTimeout, append(argv, args...)...)
	if err != nil {
		return fmt.Errorf("%s: %s: %w\n%s", n.Name, verb, err, out)
	}
	return nil
}

// StartZtunnel starts a ztunnel on the node. A second one, beside the first, has its own ports: in a cluster each has
// a pod of its own.
func (n *Node) StartZtunnel() error {
	n.offset = 100 * n.ztunnels
	return n.startZtunnel()
}

// RestartZtunnel stops the node's ztunnel and starts one with further flags, on the same ports, once the first has ended.
func (n *Node) RestartZtunnel(flags ...string) error {
	if err := n.Ztunnel.Stop(stopGrace); err != nil {
		return err
	}
	return n.startZtunnel(flags...)
}

func (n *Node) startZtunnel(flags ...string) (err error) {
	n.ztunnels++
	argv := []string{n.lab.Bin("ztunnel"),
		"--node-name", n.Name, "--log-format", "json",
		"--zds-socket", filepath.Join(n.RunDir(), "ztunnel.sock"), "--agent-socket", n.AgentSocket(),
		"--pin-root", n.PinRoot(), "--xds-address", "unix://" + filepath.Join(n.RunDir(), "controlplane.sock"),
		"--stats-address", n.ztunnelAddr(15020), "--readiness-address", n.ztunnelAddr(15021), "--admin-address", n.ztunnelAddr(15000),
		"--drain-timeout", "30s"}
	n.Ztunnel, err = n.lab.Start(n.NS, n.numbered("ztunnel", n.ztunnels), append(argv, flags...)...)
	return err
}

// numbered names a process: "agent-node1", and the second of its kind "agent-node1-2".
func (n *Node) numbered(kind string, number int) string {
	if number > 1 {
		return fmt.Sprintf("%s-%s-%d", kind, n.Name, number)
	}
	return kind + "-" + n.Name
}

// ztunnelAddr keeps the ports of ztunnels on one node apart.
func (n *Node) ztunnelAddr(port int) string {
	return fmt.Sprintf("127.0.0.1:%d", port+n.offset)
}

// ZtunnelLogs are the logs of all ztunnels that ran on the node.
func (n *Node) ZtunnelLogs() (paths []string) {
	paths, _ = filepath.Glob(filepath.Join(n.lab.Logs(), "ztunnel-"+n.Name+"*.log"))
	return paths
}

// WaitReady waits until the node's ztunnel says it is ready, which it is when the agent is.
func (n *Node) WaitReady() error {
	addr := n.ztunnelAddr(15021)
	err := Poll(readyTimeout, func() error {
		for _, p := range []*Proc{n.Agent, n.Ztunnel} {
			if !p.Alive() {
				return fmt.Errorf("%s ended; see %s", p.Name, n.lab.LogPath(p.Name))
			}
		}
		_, err := n.lab.Get(n.NS, "http://"+addr+"/healthz/ready")
		return err
	})
	if err != nil {
		return fmt.Errorf("%s not ready: %w", n.Name, err)
	}
	return nil
}

// Metrics returns the text of the current ztunnel's metrics page.
func (n *Node) Metrics() (string, error) {
	return n.lab.Get(n.NS, "http://"+n.ztunnelAddr(15020)+"/metrics")
}
