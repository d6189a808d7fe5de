// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/lab/kube"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// Node is a machine of the cluster: a set of namespaces whose process 1 is nodeinit. Its folder outlives them.
type Node struct {
	Name         string
	Addr4, Addr6 netip.Addr
	Pods4, Pods6 netip.Prefix
	// NS is the node's network namespace. Reboot makes another one.
	NS *testutil.NS

	c         *Cluster
	dir       string // what outlives a reboot
	boots     int
	init      *kube.Process
	processes map[string]*kube.Process
	commands  map[string][]string // of each, as the node sees it
	since     time.Time           // of the last start of the kubelet
}

func (c *Cluster) newNode(index int) *Node {
	n := &Node{Name: fmt.Sprintf("node%d", index), c: c, processes: map[string]*kube.Process{}, commands: map[string][]string{}}
	n.Addr4, n.Addr6, n.Pods4, n.Pods6 = addresses(index)
	n.dir = c.path(n.Name)
	return n
}

// install prepares the node and boots it for the first time.
func (n *Node) install() {
	n.c.t.Helper()
	n.c.t.Cleanup(n.removeCgroups) // after everything in them is gone
	n.c.note("cgroup", n.cgroup())
	n.writeFiles()
	n.addProcess("containerd", "/usr/bin/env", "PATH="+n.runtimePath(), "containerd", "--config=/etc/containerd/config.toml")
	n.addProcess("kubelet", kube.Binary(n.c.t, "kubelet"), "--config=/etc/kubernetes/kubelet.yaml", "--kubeconfig=/etc/kubernetes/kubelet.kubeconfig",
		"--hostname-override="+n.Name, "--node-ip="+n.Addr4.String()+","+n.Addr6.String())
	n.addProcess("kube-proxy", kube.Binary(n.c.t, "kube-proxy"), "--config=/etc/kubernetes/kube-proxy.yaml")
	n.boot()
	n.c.t.Cleanup(n.PowerOff)
}

// boot makes the namespaces and starts in them what a node's own init would.
func (n *Node) boot() {
	n.c.t.Helper()
	n.boots++
	n.plugIn()
	n.init = &kube.Process{
		Name: n.Name + "-init", Log: n.logPath("init"), Clone: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Argv: []string{"nsenter", "--net=" + n.NS.Path, n.c.path("bin", "nodeinit"), "init", n.dir, n.Name, n.cgroup()},
	}
	n.init.Start(n.c.t)
	testutil.Eventually(n.c.t, startTimeout, func() error {
		if err := n.init.Ended(); err != nil {
			n.c.t.Fatalf("%s does not boot: %v\n%s", n.Name, err, n.init.Tail())
		}
		_, err := n.Run("test", "-e", "/run/ready")
		return err
	})
	n.StartProcess("containerd")
	testutil.Eventually(n.c.t, startTimeout, func() error {
		_, err := n.Run("ctr", "version")
		return err
	})
	if n.boots == 1 {
		n.importImages()
	}
	n.StartProcess("kubelet")
	n.StartProcess("kube-proxy")
}

// plugIn makes the network namespace and its cable to the wire.
func (n *Node) plugIn() {
	t, c := n.c.t, n.c
	t.Helper()
	n.NS = testutil.NetNS(t, n.Name)
	c.note("netns", n.NS.Name)
	n.NS.Sysctl(t, "net.ipv4.ip_forward", "1")
	n.NS.Sysctl(t, "net.ipv6.conf.all.forwarding", "1")
	port := fmt.Sprintf("%s-%d", n.Name, n.boots) // the last one takes a moment to go
	testutil.Veth(t, testutil.End{NS: c.Outside, Name: port},
		testutil.End{NS: n.NS, Name: "eth0", Addrs: []string{n.Addr4.String() + "/24", n.Addr6.String() + "/64"}})
	c.Outside.Run(t, "ip", "link", "set", port, "master", "wire")
	for _, o := range c.Nodes {
		if o != n {
			n.NS.Route(t, o.Pods4, o.Addr4, "eth0")
			n.NS.Route(t, o.Pods6, o.Addr6, "eth0")
		}
	}
	// kube-proxy catches these before they leave; without a route there would be nothing to catch.
	n.NS.Route(t, servicePrefix4, netip.MustParseAddr(APIAddress), "eth0")
	n.NS.Route(t, servicePrefix6, netip.MustParseAddr(apiAddress6), "eth0")
	c.Outside.Route(t, n.Pods4, n.Addr4, "wire")
	c.Outside.Route(t, n.Pods6, n.Addr6, "wire")
}

// enter comes before a command that is to run on the node.
func (n *Node) enter() []string {
	return []string{"nsenter", "--target=" + strconv.Itoa(n.init.PID()), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--"}
}

// Run runs a command on the node and returns what it printed on both channels.
func (n *Node) Run(argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	argv = append(n.enter(), argv...)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("on %s: %s: %w\n%s", n.Name, strings.Join(argv[9:], " "), err, out)
	}
	return string(out), err
}

// Path is where the test sees a file of the node's.
func (n *Node) Path(path string) string {
	return filepath.Join("/proc", strconv.Itoa(n.init.PID()), "root", path)
}

func (n *Node) logPath(name string) string { return n.c.path("logs", n.Name+"-"+name+".log") }

// addProcess describes a program of the node.
func (n *Node) addProcess(name string, argv ...string) {
	p := &kube.Process{Name: n.Name + "-" + name, Log: n.logPath(name)}
	p.Signal = func(s syscall.Signal) error {
		if n.init.PID() == 0 {
			return nil // the end of process 1 was its, too
		}
		_, err := n.Run("sh", "-c", fmt.Sprintf("kill -%d $(cat /run/pids/%s)", s, name))
		return err
	}
	n.processes[name] = p
	n.commands[name] = append([]string{n.c.path("bin", "nodeinit"), "run", name}, argv...)
}

// StartProcess starts "containerd", "kubelet" or "kube-proxy".
func (n *Node) StartProcess(name string) {
	n.c.t.Helper()
	p := n.processes[name]
	p.Argv = append(n.enter(), n.commands[name]...)
	if name == "kubelet" {
		n.since = time.Now()
	}
	p.Start(n.c.t)
}

// KillProcess kills one of them, as a crash would; what it started lives on.
func (n *Node) KillProcess(name string) { n.c.t.Helper(); n.processes[name].Kill(n.c.t) }

// StopProcess asks one of them to end.
func (n *Node) StopProcess(name string) { n.c.t.Helper(); n.processes[name].Stop(n.c.t) }

// PowerOff kills everything on the node at once. Its disk stays, and the API server is told nothing.
func (n *Node) PowerOff() {
	t := n.c.t
	t.Helper()
	n.init.Kill(t) // process 1 of a PID namespace takes all others with it
	for _, p := range n.processes {
		p.Kill(t)
	}
	n.NS.Delete(t)
}

// Start is what follows PowerOff: what is on disk is there again, what was in memory, as mounts, pins and network
// namespaces, is not. It does not wait for the node to be Ready.
func (n *Node) Start() { n.c.t.Helper(); n.boot() }

// Reboot is PowerOff and Start: a power cut, and no shutdown.
func (n *Node) Reboot() {
	n.c.t.Helper()
	n.PowerOff()
	n.Start()
}

// WaitReady returns once the API says that the node is Ready, by a kubelet that was not killed meanwhile.
func (n *Node) WaitReady() {
	n.c.t.Helper()
	testutil.Eventually(n.c.t, startTimeout, func() error {
		for name, p := range n.processes {
			if p.PID() == 0 {
				continue
			}
			if err := p.Ended(); err != nil {
				n.c.t.Fatalf("%s: %s ended: %v\n%s", n.Name, name, err, p.Tail())
			}
		}
		return n.c.nodeReady(n.Name, n.since)
	})
}

func (n *Node) ips() []net.IP { return []net.IP{n.Addr4.AsSlice(), n.Addr6.AsSlice()} }
