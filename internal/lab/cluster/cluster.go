// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/sluice-mesh/sluice/internal/lab/kube"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// startTimeout is how long one part of the cluster may take to be there, on a machine that is busy.
const startTimeout = 2 * time.Minute

// Addresses. Every cluster has the same ones: its namespaces keep them apart.
const (
	// APIAddress is where the API server listens: on the wire, outside of all nodes.
	APIAddress  = "10.249.0.1"
	apiAddress6 = "fd00:10:249::1"
	dnsAddress  = "10.252.0.10"
)

// Config says what a cluster consists of. The zero value is two nodes.
type Config struct {
	Nodes int // 1 to 9
}

// Cluster is a running cluster. Its methods are safe for concurrent use, but for those of nodes and those that start or end
// the API server or istiod.
type Cluster struct {
	Nodes []*Node
	// Outside is where the control plane runs: a host on the nodes' wire that is neither node nor pod.
	Outside *testutil.NS

	t          testing.TB
	dir        string
	build      string
	api        *kube.APIServer
	istiod     *kube.Process // nil without StartIstiod
	client     kubernetes.Interface
	kubeconfig string
	processes  []*kube.Process
}

// Start brings up a cluster for the time of the test, and returns once its nodes are Ready and answer for names of
// services. Without what "make e2e" builds the test is skipped; with CI=true it fails.
func Start(t testing.TB, cfg Config) *Cluster {
	t.Helper()
	testutil.RequireRoot(t)
	testutil.RequireKernel(t, "6.6", "tcx")
	if cfg.Nodes == 0 {
		cfg.Nodes = 2
	}
	c := &Cluster{t: t, dir: t.TempDir(), build: buildFolder(t)}
	if err := os.MkdirAll(c.path("logs"), 0o755); err != nil {
		t.Fatal(err)
	}
	c.buildPrograms()
	c.startSweeper()
	c.startControlPlane()
	c.deployDNS()
	for i := range cfg.Nodes {
		c.Nodes = append(c.Nodes, c.newNode(i+1))
	}
	for _, n := range c.Nodes {
		n.install()
	}
	t.Cleanup(func() {
		if t.Failed() {
			c.showLogs()
		}
	})
	for _, n := range c.Nodes {
		n.WaitReady()
	}
	c.Rollout(t, "kube-system", "deployment/coredns")
	return c
}

// Dir is the folder of all the cluster's files, logs among them.
func (c *Cluster) Dir() string { return c.dir }

func (c *Cluster) path(parts ...string) string {
	return filepath.Join(append([]string{c.dir}, parts...)...)
}

// startControlPlane makes the wire, and on it etcd, the API server, the controllers and the scheduler.
func (c *Cluster) startControlPlane() {
	c.t.Helper()
	c.Outside = testutil.NetNS(c.t, "k8s")
	c.note("netns", c.Outside.Name)
	c.Outside.Sysctl(c.t, "net.ipv4.ip_forward", "1")
	c.Outside.Sysctl(c.t, "net.ipv6.conf.all.forwarding", "1")
	c.Outside.Run(c.t, "ip", "link", "add", "wire", "type", "bridge")
	c.Outside.Run(c.t, "ip", "address", "add", APIAddress+"/24", "dev", "wire")
	c.Outside.Run(c.t, "ip", "address", "add", apiAddress6+"/64", "dev", "wire", "nodad")
	c.Outside.Run(c.t, "ip", "link", "set", "wire", "up")
	c.api = kube.NewAPIServerAt(c.t, kube.Config{Address: APIAddress, Wrap: c.outside(), Dial: c.dial, Cluster: true})
	c.client, c.kubeconfig = c.api.Client(), c.api.Kubeconfig()
	c.startOutside("kube-controller-manager", "--use-service-account-credentials", "--leader-elect=false", "--bind-address=127.0.0.1",
		"--kubeconfig="+c.api.KubeconfigFor("system:kube-controller-manager"), "--root-ca-file="+c.api.CA(),
		"--service-account-private-key-file="+c.api.TokenKey(),
		"--cluster-signing-cert-file="+c.api.CA(), "--cluster-signing-key-file="+c.api.CAKey())
	c.startOutside("kube-scheduler", "--leader-elect=false", "--bind-address=127.0.0.1",
		"--kubeconfig="+c.api.KubeconfigFor("system:kube-scheduler"))
}

// outside comes before a command that is to run where the control plane does.
func (c *Cluster) outside() []string { return []string{"nsenter", "--net=" + c.Outside.Path} }

func (c *Cluster) dial(ctx context.Context, network, address string) (net.Conn, error) {
	return c.Outside.Dial(ctx, network, address)
}

// startOutside runs a part of the control plane until the end of the test.
func (c *Cluster) startOutside(part string, args ...string) {
	c.t.Helper()
	argv := append(append(c.outside(), kube.Binary(c.t, part)), args...)
	p := &kube.Process{Name: part, Log: c.path("logs", part+".log"), Argv: argv}
	p.Start(c.t)
	c.processes = append(c.processes, p)
	c.t.Cleanup(func() { p.Stop(c.t) })
}

// StopAPIServer kills the API server: connections are cut, and new ones refused. What it stored stays.
func (c *Cluster) StopAPIServer() { c.t.Helper(); c.api.Stop() }

// StartAPIServer brings it up again, and returns once it answers. Controllers and kubelets find it by themselves.
func (c *Cluster) StartAPIServer() { c.t.Helper(); c.api.Start() }

// API is the API server, for clients of other users than the administrator.
func (c *Cluster) API() *kube.APIServer { return c.api }

// Client is the administrator's.
func (c *Cluster) Client() kubernetes.Interface { return c.client }

// Node returns the node of that name, which pods' spec.nodeName is; nil if there is none.
func (c *Cluster) Node(name string) *Node {
	for _, n := range c.Nodes {
		if n.Name == name {
			return n
		}
	}
	return nil
}

// nodeReady reports whether the API says that a node is Ready. after is the time before which nothing said counts.
func (c *Cluster) nodeReady(name string, after time.Time) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	node, err := c.client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	for _, cond := range node.Status.Conditions {
		if cond.Type != corev1.NodeReady {
			continue
		}
		// The API's times are whole seconds.
		if cond.Status == corev1.ConditionTrue && !cond.LastHeartbeatTime.Time.Before(after.Truncate(time.Second)) {
			return nil
		}
		return fmt.Errorf("%s: Ready is %s since %v: %s", name, cond.Status, cond.LastHeartbeatTime, cond.Message)
	}
	return fmt.Errorf("%s has no condition Ready", name)
}

// showLogs prints the ends of all logs.
func (c *Cluster) showLogs() {
	paths, _ := filepath.Glob(c.path("logs", "*.log"))
	for _, path := range paths {
		p := kube.Process{Log: path}
		c.t.Logf("end of %s:\n%s", filepath.Base(path), p.Tail())
	}
	for _, args := range []string{"get nodes,pods -A -o wide", "get events -A --sort-by=.lastTimestamp"} {
		out, err := c.TryKubectl(strings.Fields(args)...)
		if len(out) > 8<<10 {
			out = out[len(out)-8<<10:]
		}
		c.t.Logf("kubectl %s: %v\n%s", args, err, out)
	}
}

// addresses are a node's on the wire and those of its pods.
func addresses(index int) (wire4, wire6 netip.Addr, pods4, pods6 netip.Prefix) {
	return netip.MustParseAddr(fmt.Sprintf("10.249.0.%d", 10+index)), netip.MustParseAddr(fmt.Sprintf("fd00:10:249::%d", 10+index)),
		netip.MustParsePrefix(fmt.Sprintf("10.250.%d.0/24", index)), netip.MustParsePrefix(fmt.Sprintf("fd00:10:250:%d::/64", index))
}

// must fails the test with all errors.
func (c *Cluster) must(errs ...error) {
	c.t.Helper()
	if err := errors.Join(errs...); err != nil {
		c.t.Fatal(err)
	}
}
