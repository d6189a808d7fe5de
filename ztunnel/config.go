// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-mesh/sluice/ztunnel/discovery"
)

// Config is what ztunnel was told by flags and environment.
type Config struct {
	ZDSSocket   string
	AgentSocket string // empty: driven by a foreign agent, listeners are created in the pod
	PinRoot     string

	XDSAddress string
	XDSRootCA  string
	CAAddress  string
	CARootCA   string
	AuthToken  string `json:"-"` // may be the token itself
	SecretTTL  time.Duration

	NodeName    string
	PodName     string
	Namespace   string
	InstanceIP  string
	ClusterID   string
	Network     string
	TrustDomain string
	// ClusterDomain and PreferredNamespace are for what pods ask of DNS.
	ClusterDomain      string
	PreferredNamespace string

	StatsAddress     string
	ReadinessAddress string
	AdminAddress     string

	DrainTimeout time.Duration
	LogLevel     string
	LogFormat    string
	// Metadata is what ISTIO_META_* and ISTIO_METAJSON_* add to the xDS node.
	Metadata map[string]any
}

// parseConfig reads flags over environment over defaults. The error of a request for help is flag.ErrHelp.
func parseConfig(args []string, getenv func(string) string, environ []string, output io.Writer) (*Config, error) {
	c := &Config{DrainTimeout: drainDefault(getenv)}
	flags := flag.NewFlagSet("ztunnel", flag.ContinueOnError)
	flags.SetOutput(output)
	flags.Usage = func() {
		fmt.Fprint(output, usageHead)
		flags.PrintDefaults()
	}
	var errs []error
	var err error
	if c.Metadata, err = discovery.MetadataFromEnv(environ); err != nil {
		errs = append(errs, fmt.Errorf("environment %w", err))
	}
	text := func(p *string, name, value, usage string, env ...string) {
		flags.StringVar(p, name, firstSet(getenv, value, env...), describe(usage, env))
	}
	span := func(p *time.Duration, name string, value time.Duration, usage string, env ...string) {
		if s := firstSet(getenv, "", env...); s != "" {
			d, err := time.ParseDuration(s)
			if err != nil {
				errs = append(errs, fmt.Errorf("environment %s: %w", env[0], err))
			}
			value = d
		}
		flags.DurationVar(p, name, value, describe(usage, env))
	}
	c.declare(text, span)
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if flags.NArg() > 0 {
		errs = append(errs, fmt.Errorf("unexpected argument %q", flags.Arg(0)))
	}
	if err := errors.Join(append(errs, c.Validate())...); err != nil {
		return nil, err
	}
	return c, nil
}

const usageHead = `ztunnel carries the TCP connections of this node's mesh pods in mutual TLS.

Usage: ztunnel [proxy] [flags]
       ztunnel version

Flags, each with the environment variable that sets its default:
`

func describe(usage string, env []string) string {
	if len(env) == 0 {
		return usage
	}
	return usage + " [" + strings.Join(env, ", ") + "]"
}

type (
	textSetting func(p *string, name, value, usage string, env ...string)
	spanSetting func(p *time.Duration, name string, value time.Duration, usage string, env ...string)
)

// declare lists every setting. Environment names are those of the reference proxy where the meaning is the same.
func (c *Config) declare(text textSetting, span spanSetting) {
	text(&c.ZDSSocket, "zds-socket", "/run/sluice/ztunnel.sock", "socket on which the agent names the pods to serve", "INPOD_UDS")
	text(&c.AgentSocket, "agent-socket", "/run/sluice/agent.sock", "socket of our agent, which hands listeners over; empty for a foreign agent: listeners are created in the pod", "AGENT_SOCKET")
	text(&c.PinRoot, "pin-root", "/sys/fs/bpf/sluice/v1", "folder of the pinned maps; unused with a foreign agent", "PIN_ROOT")
	text(&c.XDSAddress, "xds-address", "unix:///run/sluice/controlplane.sock", "control plane, unix:///path or https://host:port", "XDS_ADDRESS")
	text(&c.XDSRootCA, "xds-root-ca", "./var/run/secrets/istio/root-cert.pem", "who signs the control plane's certificate: file, PEM text or SYSTEM", "XDS_ROOT_CA")
	text(&c.CAAddress, "ca-address", "", "certificate authority; empty means the control plane", "CA_ADDRESS")
	text(&c.CARootCA, "ca-root-ca", "", "who signs the authority's certificate; empty means as for the control plane", "CA_ROOT_CA")
	text(&c.AuthToken, "auth-token", "./var/run/secrets/tokens/istio-token", "bearer token: file or the text itself; unused on unix sockets", "AUTH_TOKEN")
	span(&c.SecretTTL, "secret-ttl", 24*time.Hour, "life time asked for certificates", "SECRET_TTL")
	text(&c.NodeName, "node-name", "", "name of this node", "NODE_NAME")
	text(&c.PodName, "pod-name", "", "name of this process's pod; empty means the node name", "POD_NAME")
	text(&c.Namespace, "pod-namespace", "istio-system", "namespace of this process's pod", "POD_NAMESPACE")
	text(&c.InstanceIP, "instance-ip", "1.1.1.1", "address of this process's pod", "INSTANCE_IP")
	text(&c.ClusterID, "cluster-id", "Kubernetes", "name of the cluster", "CLUSTER_ID", "ISTIO_META_CLUSTER_ID")
	text(&c.Network, "network", "", "name of the network the pods are in", "NETWORK")
	text(&c.TrustDomain, "trust-domain", "cluster.local", "trust domain of workloads whose record names none", "TRUST_DOMAIN")
	text(&c.ClusterDomain, "cluster-domain", "cluster.local", "domain of the cluster's services, for the queries of pods whose DNS is captured", "CLUSTER_DOMAIN")
	text(&c.PreferredNamespace, "preferred-service-namespace", "", "namespace whose services answer to host names that several have, if the asking pod's own has none", "PREFERED_SERVICE_NAMESPACE")
	text(&c.StatsAddress, "stats-address", ":15020", "where metrics are served")
	text(&c.ReadinessAddress, "readiness-address", ":15021", "where /healthz/ready is served")
	text(&c.AdminAddress, "admin-address", "127.0.0.1:15000", "where the admin page is served; loopback only")
	span(&c.DrainTimeout, "drain-timeout", c.DrainTimeout, "how long connections may live on after SIGTERM", "CONNECTION_TERMINATION_DEADLINE")
	text(&c.LogLevel, "log-level", "info", "off, error, warn, info, debug or trace, and by scope: info,access=debug", "LOG_LEVEL", "RUST_LOG")
	text(&c.LogFormat, "log-format", "text", "text or json", "LOG_FORMAT")
}

// drainDefault is ambient section 4.8: shorter than the time Kubernetes grants, so that the end is ours.
func drainDefault(getenv func(string) string) time.Duration {
	grace, err := strconv.Atoi(getenv("TERMINATION_GRACE_PERIOD_SECONDS"))
	switch {
	case err != nil:
		return 5 * time.Second
	case grace > 10:
		return time.Duration(grace-5) * time.Second
	}
	return time.Duration(max(1, grace-1)) * time.Second
}

func firstSet(getenv func(string) string, fallback string, names ...string) string {
	for _, name := range names {
		if v := getenv(name); v != "" {
			return v
		}
	}
	return fallback
}
