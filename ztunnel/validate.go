// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"

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
	for _, address := range []named{{"xds-address", c.XDSAddress}, {"ca-address", cmp.Or(c.CAAddress, c.XDSAddress)}} {
		if err := checkControlPlane(address.value); err != nil {
			mistake(address.name, "%w", err)
		}
	}
	for _, address := range []named{{"stats-address", c.StatsAddress}, {"readiness-address", c.ReadinessAddress}, {"admin-address", c.AdminAddress}} {
		if _, err := net.ResolveTCPAddr("tcp", address.value); err != nil {
			mistake(address.name, "%w", err)
		}
	}
	if host, _, err := net.SplitHostPort(c.AdminAddress); err == nil && host != "localhost" && !net.ParseIP(host).IsLoopback() {
		mistake("admin-address", "%q is not on loopback, and the admin page has no authentication", c.AdminAddress)
	}
	if c.DrainTimeout <= 0 {
		mistake("drain-timeout", "%s is not positive", c.DrainTimeout)
	}
	if c.SecretTTL <= 0 {
		mistake("secret-ttl", "%s is not positive", c.SecretTTL)
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

func checkControlPlane(address string) error {
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
