// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"slices"
	"time"

	"github.com/sluice-mesh/sluice/ztunnel/discovery"
)

// Config is what ztunnel was told by flags and environment. docs/CONFIGURATION.md says what each setting means.
type Config struct {
	ZDSSocket   string
	AgentSocket string // empty: driven by a foreign agent, listeners are created in the pod
	PinRoot     string

	XDSAddress     string // empty: none, there is local xDS only
	XDSRootCA      string
	AltXDSHostname string
	CAAddress      string
	CARootCA       string
	AltCAHostname  string
	AuthToken      string `json:"-"` // may be the token itself
	SecretTTL      time.Duration
	CRLPath        string
	// XDSHeaders and CAHeaders are further metadata of calls, keys in lower case.
	XDSHeaders, CAHeaders map[string]string `json:"-"` // may be secrets
	// LocalXDSPath is a file of what xDS would bring, LocalXDS the same as text.
	LocalXDSPath string
	LocalXDS     string `json:"-"` // may be long, and is in the dump already

	NodeName       string
	PodName        string
	Namespace      string
	ServiceAccount string
	InstanceIP     string
	ClusterID      string
	Network        string
	TrustDomain    string
	// ClusterDomain and PreferredNamespace are for what pods ask of DNS.
	ClusterDomain      string
	PreferredNamespace string
	DNSCapture         bool // sockets for redirected queries, with a foreign agent

	StatsAddress     string
	ReadinessAddress string
	AdminAddress     string

	IPv6           bool
	OriginalSource *bool // nil: where it is possible
	PortReuse      bool
	PacketMark     uint32
	KeepAlive      KeepAlive
	UserTimeout    bool // TCP_USER_TIMEOUT from KeepAlive's times
	// MaxConnections and MaxConnectionsPerPod are 0 for what the limit of open files allows.
	MaxConnections       int
	MaxConnectionsPerPod int

	PoolMaxStreams    int
	PoolUnusedRelease time.Duration
	// StreamWindow, ConnectionWindow and FrameSize are those of HTTP/2, in bytes.
	StreamWindow, ConnectionWindow, FrameSize int
	// WindowMemory bounds what the windows of all tunnels may hold above their least, in bytes; 0 for a quarter of the
	// process's memory.
	WindowMemory int

	TLS12              bool
	CompliancePolicy   string // "" or "pqc"
	LocalhostAppTunnel bool
	ResponseBaggage    bool
	AuthzInfo          bool

	DrainTimeout  time.Duration
	LogLevel      string
	LogFormat     string
	WorkerThreads threads
	cpuCount      int
	cpuLimit      int
	cpuRequest    int
	// Metadata is what ISTIO_META_* and ISTIO_METAJSON_* add to the xDS node.
	Metadata map[string]any
}

// KeepAlive is the keepalive of TCP connections.
type KeepAlive struct {
	Enabled  bool
	Time     time.Duration // silence before the first probe
	Interval time.Duration // between probes
	Retries  int           // probes without an answer
}

// defaults are those that depend on something else than the setting itself.
type defaults struct {
	xdsAddress, authToken      string
	statsAddress, adminAddress string
	drainTimeout               time.Duration
	workerThreads              threads
	dnsCapture                 bool
}

// parseConfig reads flags over environment over defaults. The error of a request for help is flag.ErrHelp.
func parseConfig(args []string, getenv func(string) string, environ []string, output io.Writer) (*Config, error) {
	c := &Config{}
	flags := flag.NewFlagSet("ztunnel", flag.ContinueOnError)
	flags.SetOutput(output)
	flags.Usage = func() {
		fmt.Fprint(output, usageHead)
		flags.PrintDefaults()
	}
	s := &settings{flags: flags, getenv: getenv}
	mesh, err := readProxyConfig(getenv("PROXY_CONFIG"), meshFile)
	if err != nil {
		s.errs = append(s.errs, err)
	}
	d := defaultsFor(s, mesh, environ)
	c.fromEnviron(s, environ)
	mesh.addTo(c.Metadata)
	c.declare(s, d)
	if err := flags.Parse(args); err != nil {
		return nil, errors.Join(append(s.errs, err)...)
	}
	if flags.NArg() > 0 {
		s.errs = append(s.errs, fmt.Errorf("unexpected argument %q", flags.Arg(0)))
	}
	if err := errors.Join(append(s.errs, c.Validate())...); err != nil {
		return nil, err
	}
	return c, nil
}

const usageHead = `ztunnel carries the TCP connections of this node's mesh pods in mutual TLS.

Usage: ztunnel [proxy [ztunnel]] [flags]
       ztunnel version

Flags, each with the environment variable that sets its default:
`

func defaultsFor(s *settings, mesh proxyConfig, environ []string) defaults {
	d := defaults{
		xdsAddress:   "unix:///run/sluice/controlplane.sock",
		authToken:    "./var/run/secrets/tokens/istio-token",
		statsAddress: ":15020", adminAddress: "127.0.0.1:15000",
		drainTimeout: drainDefault(s), dnsCapture: true,
	}
	if err := mesh.apply(&d); err != nil {
		s.errs = append(s.errs, err)
	}
	// Where nothing has a meaning of its own, a variable that is set to nothing says it.
	if slices.Contains(environ, "XDS_ADDRESS=") {
		d.xdsAddress = ""
	}
	if slices.Contains(environ, "AUTH_TOKEN=") {
		d.authToken = ""
	}
	return d
}

// fromEnviron takes the variables that are known by how their names begin.
func (c *Config) fromEnviron(s *settings, environ []string) {
	var err error
	if c.Metadata, err = discovery.MetadataFromEnv(environ); err != nil {
		c.Metadata = map[string]any{}
		s.errs = append(s.errs, fmt.Errorf("environment %w", err))
	}
	c.XDSHeaders = s.headers("XDS_HEADER_", environ)
	c.CAHeaders = s.headers("CA_HEADER_", environ)
}

// drainDefault is ambient section 4.8: shorter than the time Kubernetes grants, so that the end is ours.
func drainDefault(s *settings) time.Duration {
	const variable = "TERMINATION_GRACE_PERIOD_SECONDS"
	text := s.getenv(variable)
	if text == "" {
		return 5 * time.Second
	}
	grace, err := parseInt(text, 0, math.MaxInt32)
	if err != nil {
		s.errs = append(s.errs, fmt.Errorf("environment %s: %w", variable, err))
	}
	if grace > 10 {
		return time.Duration(grace-5) * time.Second
	}
	return time.Duration(max(1, grace-1)) * time.Second
}
