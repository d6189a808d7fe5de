// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"crypto/tls"
	"fmt"
)

// TLSPolicy says what a handshake may agree on. The zero value is what every mesh speaks: TLS 1.3 with AES-GCM, over
// X25519MLKEM768, X25519, P-256 or P-384.
type TLSPolicy struct {
	// TLS12 allows TLS 1.2 too, with ECDHE and AES-GCM.
	TLS12 bool
	// PostQuantum allows no key exchange but X25519MLKEM768, which TLS 1.2 does not have: it is off then.
	PostQuantum bool
}

// ParseTLSPolicy reads the settings COMPLIANCE_POLICY and TLS12_ENABLED. A compliance of "" asks for nothing.
func ParseTLSPolicy(compliance string, tls12 bool) (TLSPolicy, error) {
	switch compliance {
	case "":
		return TLSPolicy{TLS12: tls12}, nil
	case "pqc":
		return TLSPolicy{TLS12: tls12, PostQuantum: true}, nil
	}
	return TLSPolicy{}, fmt.Errorf(`compliance policy %q: want "pqc", or "" for none`, compliance)
}

// suites12 are those of ambient section 4.1.
var suites12 = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
}

// base is what both ends share.
//
// Go does not let TLS 1.3 suites be chosen: [checkSuite] refuses the one that is not wanted. Nor does it heed the order of
// CurvePreferences: X25519MLKEM768 comes first by itself.
func (p TLSPolicy) base() *tls.Config {
	cfg := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		MaxVersion:             tls.VersionTLS13,
		CipherSuites:           suites12,
		NextProtos:             []string{alpn},
		CurvePreferences:       []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256, tls.CurveP384},
		SessionTicketsDisabled: true,
		// Full records from the first byte: HBONE carries bulk data and its frames are flushed whole.
		DynamicRecordSizingDisabled: true,
	}
	if p.PostQuantum {
		cfg.CurvePreferences = []tls.CurveID{tls.X25519MLKEM768}
	} else if p.TLS12 {
		cfg.MinVersion = tls.VersionTLS12
	}
	return cfg
}

// checkSuite refuses ChaCha20, which ambient section 4.1 leaves out: a peer without AES in hardware may bring it about.
func checkSuite(state tls.ConnectionState) error {
	if state.CipherSuite == tls.TLS_CHACHA20_POLY1305_SHA256 {
		return &SuiteError{Suite: state.CipherSuite}
	}
	return nil
}
