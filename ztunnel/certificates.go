// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"github.com/sluice-mesh/sluice/ztunnel/identity"
	"github.com/sluice-mesh/sluice/ztunnel/telemetry"
)

// certificates is what the settings say of handshakes. A file of revocations that cannot be read is an error.
func (z *ztunnel) certificates() (identity.Config, error) {
	log := telemetry.Scope(z.log, "identity")
	policy, err := identity.ParseTLSPolicy(z.config.CompliancePolicy, z.config.TLS12)
	if err != nil || z.config.CRLPath == "" {
		return identity.Config{TLS: policy, Logger: log}, err
	}
	crl, err := identity.OpenCRL(z.config.CRLPath, log)
	return identity.Config{TLS: policy, CRL: crl, Logger: log}, err
}

// followRevocations ends with ctx. Revocations that cannot be followed would be missed in silence, so ztunnel ends.
func (z *ztunnel) followRevocations(ctx context.Context) {
	if err := z.crl.Watch(ctx); ctx.Err() == nil {
		z.stop(err)
	}
}
