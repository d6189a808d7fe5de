// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto/tls"
	"time"
)

// alpn is the one application protocol of HBONE.
const alpn = "h2"

// clientWait bounds how long a client's handshake waits for its own certificate. [tls.Config.VerifyConnection] is not
// given the handshake's context; a caller with less patience closes the connection.
const clientWait = 10 * time.Second

// ServerTLS returns the configuration of the HBONE listener of id.
//
// Certificate and roots are looked up in m for each handshake, so one configuration serves for the life of the pod.
// Which certificate to show is decided by whose listener accepted, never by SNI. A refused handshake fails with
// [ErrNoCertificate], [ErrNotH2], [*TrustDomainError], [*ExpiredError] or [*UntrustedError] in its chain;
// with [*UnavailableError] if there is no certificate of our own.
func ServerTLS(m *Manager, id Identity) *tls.Config {
	cfg := base()
	cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		b, err := m.Get(hello.Context(), id)
		if err != nil {
			return nil, err
		}
		return b.serverConfig(), nil
	}
	return cfg
}

// serverConfig is built per handshake: crypto/tls keeps nothing in it that a later handshake could use, as there are
// no session tickets.
func (b *Bundle) serverConfig() *tls.Config {
	cfg := base()
	cfg.Certificates = []tls.Certificate{b.Cert}
	// Request and not Require: VerifyConnection then gives the refusal a name of ours.
	cfg.ClientAuth = tls.RequestClientCert
	cfg.VerifyConnection = func(state tls.ConnectionState) error {
		return verifyClient(state, b.Roots, b.Identity.TrustDomain, time.Now())
	}
	return cfg
}

// ClientTLS returns the configuration to dial a peer as id. The peer must be any of expected, which are SPIFFE URIs.
//
// Certificate and roots are looked up in m for each handshake. A refused server fails the handshake with
// [*UnexpectedError], [*ExpiredError], [*UntrustedError] or [ErrNotH2] in the error's chain; with [*UnavailableError] if
// there is no certificate of our own.
func ClientTLS(m *Manager, id Identity, expected []string) *tls.Config {
	cfg := base()
	// No ServerName, so no SNI and no host name check; VerifyConnection does the whole verification.
	cfg.InsecureSkipVerify = true
	cfg.GetClientCertificate = func(request *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		b, err := m.Get(request.Context(), id)
		if err != nil {
			return nil, err
		}
		return &b.Cert, nil
	}
	cfg.VerifyConnection = func(state tls.ConnectionState) error {
		ctx, cancel := context.WithTimeout(context.Background(), clientWait)
		defer cancel()
		b, err := m.Get(ctx, id)
		if err != nil {
			return err
		}
		return verifyServer(state, b.Roots, expected, time.Now())
	}
	return cfg
}

// base is what both ends share.
//
// Go does not let TLS 1.3 suites be chosen: with AES instructions on both sides it takes AES-128-GCM, and peers that
// refuse ChaCha20 never pick it. Nor does it heed the order of CurvePreferences: X25519MLKEM768 comes first by itself.
func base() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		MaxVersion:             tls.VersionTLS13,
		NextProtos:             []string{alpn},
		CurvePreferences:       []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256},
		SessionTicketsDisabled: true,
		// Full records from the first byte: HBONE carries bulk data and its frames are flushed whole.
		DynamicRecordSizingDisabled: true,
	}
}
