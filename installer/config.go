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

	Settings       enroll.Settings // of pods without annotations
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
	fs.StringVar(&c.ManifestsDir, "manifests", "", "folder of YAML manifests that say what is in the mesh: Namespaces, Pods, Services, PeerAuthentications, AuthorizationPolicies (required)")
	fs.StringVar(&c.WorkloadsDir, "workloads", "", "folder that gets a file per enrolled pod, shared by all nodes of the mesh; default STATE-DIR/workloads")
	fs.StringVar(&c.CADir, "ca-dir", "", "folder of the embedded CA's root key, shared by all nodes of the mesh; default STATE-DIR/ca")
	fs.StringVar(&c.ClusterID, "cluster-id", "Kubernetes", "cluster in the uids of workloads")
	fs.StringVar(&c.TrustDomain, "trust-domain", "cluster.local", "trust domain of the embedded CA")
	fs.StringVar(&c.XDSAddress, "xds-address", "", "istiod that this node's ztunnel uses; the embedded control plane is then not started")
	c.declareSettings(fs)
	fs.DurationVar(&c.ServeTimeout, "serve-timeout", 10*time.Second, "how long ztunnel may take to serve a new pod before its ADD fails")
	fs.DurationVar(&c.ProxyDownLimit, "proxy-down-limit", 10*time.Minute, "how long connections of enrolled pods wait for a ztunnel to come back before they are refused; 0 means forever")
	fs.DurationVar(&c.Resync, "resync", 5*time.Second, "time between two comparisons of what is with what should be")
	fs.StringVar(&c.MetricsAddress, "metrics-address", "", "host:port for /metrics and /healthz/ready; empty means none")
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
	if c.ManifestsDir == "" {
		errs = append(errs, errors.New("--manifests: is required; without it nothing says which pods are in the mesh"))
	} else {
		errs = append(errs, absolute("manifests", c.ManifestsDir))
	}
	if !nodeNames.MatchString(c.NodeName) {
		errs = append(errs, fmt.Errorf("--node-name: %q is not a node name (lower case letters, digits, '-', '.')", c.NodeName))
	}
	for _, d := range []struct {
		name  string
		value time.Duration
		zero  bool
	}{{"serve-timeout", c.ServeTimeout, false}, {"resync", c.Resync, false}, {"proxy-down-limit", c.ProxyDownLimit, true}} {
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
