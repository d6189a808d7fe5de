// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/sluice-mesh/sluice/ztunnel/telemetry"
)

// Validate returns every mistake.
func (c *Config) Validate() error {
	var errs []error
	mistake := func(name, format string, args ...any) {
		errs = append(errs, fmt.Errorf("--%s: "+format, append([]any{name}, args...)...))
	}
	for _, path := range []named{{"zds-socket", c.ZDSSocket}, {"agent-socket", c.AgentSocket}, {"pin-root", c.PinRoot}} {
		if !filepath.IsAbs(path.value) && (path.name != "agent-socket" || path.value != "") {
			mistake(path.name, "%q is not an absolute path", path.value)
		}
	}
	c.checkSources(mistake)
	for _, address := range []named{{"stats-address", c.StatsAddress}, {"readiness-address", c.ReadinessAddress}, {"admin-address", c.AdminAddress}} {
		if _, err := net.ResolveTCPAddr("tcp", address.value); err != nil {
			mistake(address.name, "%w", err)
		}
	}
	if host, _, err := net.SplitHostPort(c.AdminAddress); err == nil && host != "localhost" && !net.ParseIP(host).IsLoopback() {
		mistake("admin-address", "%q is not on loopback, and the admin page has no authentication", c.AdminAddress)
	}
	for _, d := range []struct {
		name string
		span time.Duration
	}{
		{"drain-timeout", c.DrainTimeout}, {"secret-ttl", c.SecretTTL}, {"pool-unused-release", c.PoolUnusedRelease},
		{"keepalive-time", c.KeepAlive.Time}, {"keepalive-interval", c.KeepAlive.Interval},
	} {
		if d.span <= 0 {
			mistake(d.name, "%s is not positive", d.span)
		}
	}
	if c.CompliancePolicy != "" && c.CompliancePolicy != "pqc" {
		mistake("compliance-policy", "%q is neither pqc nor empty", c.CompliancePolicy)
	}
	if _, err := telemetry.ParseLevels(c.LogLevel); err != nil {
		mistake("log-level", "%w", err)
	}
	if _, err := telemetry.ParseFormat(c.LogFormat); err != nil {
		mistake("log-format", "%w", err)
	}
	if c.NodeName == "" {
		mistake("node-name", "missing: certificates and workloads are those of this node")
	}
	if c.TrustDomain == "" {
		mistake("trust-domain", "missing")
	}
	return errors.Join(errs...)
}

type named struct{ name, value string }

// checkSources is about where workloads and certificates come from.
func (c *Config) checkSources(mistake func(name, format string, args ...any)) {
	local := c.LocalXDSPath != "" || c.LocalXDS != ""
	switch {
	case c.XDSAddress != "":
		if err := checkControlPlane(c.XDSAddress); err != nil {
			mistake("xds-address", "%w", err)
		}
	case !local:
		mistake("xds-address", "missing, and there is no local xDS (--local-xds-path) either")
	}
	switch {
	case c.CAAddress != "":
		if err := checkControlPlane(c.CAAddress); err != nil {
			mistake("ca-address", "%w", err)
		}
	case c.XDSAddress == "":
		mistake("ca-address", "missing, and there is no control plane to stand in")
	}
	if c.LocalXDSPath != "" && c.LocalXDS != "" {
		mistake("local-xds", "only one of it and --local-xds-path can be set")
	}
}

// checkControlPlane takes host:port as https, as the reference does.
func checkControlPlane(address string) error {
	if !strings.Contains(address, "://") {
		if host, port, err := net.SplitHostPort(address); err == nil && host != "" && port != "" {
			return nil
		}
	}
	u, err := url.Parse(address)
	switch {
	case err != nil:
		return err
	case u.Scheme == "unix" && u.Host == "" && filepath.IsAbs(u.Path):
		return nil
	case u.Scheme == "https" && u.Host != "" && u.Port() != "":
		return nil
	}
	return fmt.Errorf("%q is neither unix:///path nor https://host:port", address)
}
