// SPDX-License-Identifier: Apache-2.0

package main

import (
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-mesh/sluice/ztunnel/identity"
)

// TestMissingCRLFileEndsWithAnError: to go on without would be to trust who is revoked.
func TestMissingCRLFileEndsWithAnError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "crl.pem")
	p := start(t, true, "--crl-path", path)
	p.wantExit(1)
	if text := p.stderr.String() + p.stdout.String(); !strings.Contains(text, "CRL file") || !strings.Contains(text, path) {
		t.Errorf("output does not name the file: %s", text)
	}
}

// TestSettingsReachTheHandshakes: what TLS12_ENABLED and COMPLIANCE_POLICY become.
func TestSettingsReachTheHandshakes(t *testing.T) {
	z := &ztunnel{config: &Config{TLS12: true, CompliancePolicy: "pqc"}, log: slog.New(slog.DiscardHandler)}
	c, err := z.certificates()
	if want := (identity.TLSPolicy{TLS12: true, PostQuantum: true}); err != nil || c.TLS != want || c.CRL != nil {
		t.Errorf("got %+v, %v, want %+v and no CRL", c, err, want)
	}
}
