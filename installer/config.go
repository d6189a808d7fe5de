// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/installer/enroll"
)

// agentConfig is what the agent was told by flags.
type agentConfig struct {
	paths
	cni cniConfig

	NodeName     string
	ManifestsDir string
	WorkloadsDir string // empty: StateDir/workloads
	CADir        string // empty: StateDir/ca
	ClusterID    string
	TrustDomain  string
	XDSAddress   string // not empty: no embedded control plane
	source       sourceConfig

	Settings       enroll.Settings // of pods without annotations
	Host           bpf.HostConfig
	AttachMode     bpf.AttachMode
	ServeTimeout   time.Duration
	ProxyDownLimit time.Duration
	Resync         time.Duration
	MetricsAddress string
	LogLevel       slog.Level
}

func (c *agentConfig) declare(fs *flag.FlagSet) {
	c.paths.declare(fs)
	c.cni.declare(fs)
	fs.StringVar(&c.NodeName, "node-name", os.Getenv("NODE_NAME"), "name of this node, different from all others; default $NODE_NAME, else the host name")
	fs.StringVar(&c.ManifestsDir, "manifests", "", "folder of YAML manifests that say what is in the mesh: Namespaces, Pods, Services, PeerAuthentications, AuthorizationPolicies (required with --source=files)")
	fs.StringVar(&c.WorkloadsDir, "workloads", "", "folder that gets a file per enrolled pod, shared by all nodes of the mesh; default STATE-DIR/workloads")
	fs.StringVar(&c.CADir, "ca-dir", "", "folder of the embedded CA's root key, shared by all nodes of the mesh; default STATE-DIR/ca")
	fs.StringVar(&c.ClusterID, "cluster-id", "Kubernetes", "cluster in the uids of workloads")
	fs.StringVar(&c.TrustDomain, "trust-domain", "cluster.local", "trust domain of the embedded CA")
	fs.StringVar(&c.XDSAddress, "xds-address", "", "istiod that this node's ztunnel uses; the embedded control plane is then not started")
	c.source.declare(fs)
	c.declareSettings(fs)
	c.declareHost(fs)
	fs.Func("attach-mode", "how programs are attached to devices: tcx, clsact (before Linux 6.6), or auto for the first of these that the kernel has (default auto; $"+bpf.AttachModeEnv+" says what auto is)", func(v string) (err error) {
		c.AttachMode, err = bpf.ParseAttachMode(v)
		return err
	})
	fs.DurationVar(&c.ServeTimeout, "serve-timeout", 10*time.Second, "how long ztunnel may take to serve a new pod before its ADD fails")
	fs.DurationVar(&c.ProxyDownLimit, "proxy-down-limit", 10*time.Minute, "how long connections of enrolled pods wait for a ztunnel to come back before they are refused; 0 means forever")
	fs.DurationVar(&c.Resync, "resync", 5*time.Second, "time between two comparisons of what is with what should be")
	fs.StringVar(&c.MetricsAddress, "metrics-address", "", "host:port for /metrics, /healthz/ready and /healthz/live; empty means none")
	fs.TextVar(&c.LogLevel, "log-level", slog.LevelInfo, "debug, info, warn or error")
}

// declareSettings declares what a pod's annotations may change for that pod.
func (c *agentConfig) declareSettings(fs *flag.FlagSet) {
	s := &c.Settings
	fs.BoolVar(&s.CaptureAll, "capture-all", false, "capture all TCP of enrolled pods, also to destinations outside the mesh")
	fs.BoolVar(&s.CaptureDNS, "dns-capture", false, "answer the DNS queries of enrolled pods from the mesh, and forward what it does not know")
	fs.Func("exclude-cidrs", "comma-separated `CIDRs` and addresses that enrolled pods reach without the mesh", func(v string) (err error) {
		s.ExcludeCIDRs, err = enroll.ParseCIDRs(v)
		return err
	})
	fs.Func("exclude-ports", "comma-separated `ports` that enrolled pods reach without the mesh, at any address", func(v string) (err error) {
		s.ExcludePorts, err = enroll.ParsePorts(v)
		return err
	})
}

// declareHost declares which programs serve the node as a whole.
func (c *agentConfig) declareHost(fs *flag.FlagSet) {
	h := &c.Host
	h.Probe, h.Bind, h.Flows = true, true, true
	choice(fs, "probe", &h.Probe, "auto", "\"auto\" lets probes of kubelet, or else of any process of the host, reach the apps of enrolled pods; \"off\" has them meet the policies")
	fs.StringVar(&h.ProbeCgroup, "kubelet-cgroup", "", "folder of the cgroup that probes come from; default kubelet's own, else the root, which trusts every process of the host")
	choice(fs, "bind", &h.Bind, "on", "\"on\" sets SO_REUSEADDR for the apps of enrolled pods, so that connections of ztunnel's do not keep them from binding; or \"off\"")
	choice(fs, "flows", &h.Flows, "on", "\"on\" counts bytes, round-trip times and retransmits of each connection of enrolled pods; or \"off\"")
	fs.DurationVar(&h.FlowInterval, "flow-interval", 10*time.Second, "how often an open connection is reported again")
}

// choice declares a flag that is on, by whatever name, or off.
func choice(fs *flag.FlagSet, name string, value *bool, on, usage string) {
	fs.Func(name, usage+" (default "+on+")", func(v string) error {
		if v != on && v != "off" {
			return fmt.Errorf("must be %q or \"off\"", on)
		}
		*value = v == on
		return nil
	})
}

// nodeNames are those that fit into a file name and a workload.
var nodeNames = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$`)

// complete fills in what depends on other flags and returns all mistakes.
func (c *agentConfig) complete() error {
	if c.NodeName == "" {
		c.NodeName, _ = os.Hostname()
	}
	c.WorkloadsDir = cmp.Or(c.WorkloadsDir, filepath.Join(c.StateDir, "workloads"))
	c.CADir = cmp.Or(c.CADir, filepath.Join(c.StateDir, "ca"))
	errs := []error{c.paths.validate(), c.cni.validate(false), absolute("workloads", c.WorkloadsDir), absolute("ca-dir", c.CADir)}
	errs = append(errs, c.source.complete(c))
	if c.Host.ProbeCgroup != "" {
		errs = append(errs, absolute("kubelet-cgroup", c.Host.ProbeCgroup))
	}
	if !nodeNames.MatchString(c.NodeName) {
		errs = append(errs, fmt.Errorf("--node-name: %q is not a node name (lower case letters, digits, '-', '.')", c.NodeName))
	}
	for _, d := range []struct {
		name  string
		value time.Duration
		zero  bool
	}{{"serve-timeout", c.ServeTimeout, false}, {"resync", c.Resync, false}, {"proxy-down-limit", c.ProxyDownLimit, true}, {"flow-interval", c.Host.FlowInterval, false}} {
		if d.value < 0 || d.value == 0 && !d.zero {
			errs = append(errs, fmt.Errorf("--%s: %s is too short", d.name, d.value))
		}
	}
	if c.MetricsAddress != "" {
		if _, _, err := net.SplitHostPort(c.MetricsAddress); err != nil {
			errs = append(errs, fmt.Errorf("--metrics-address: %w", err))
		}
	}
	return errors.Join(errs...)
}
