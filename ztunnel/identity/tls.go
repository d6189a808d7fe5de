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
// [ErrNoCertificate], [ErrNotH2], [*SuiteError], [*TrustDomainError], [*ExpiredError], [*UntrustedError], [*ChainLengthError]
// or [*RevokedError] in its chain; with [*UnavailableError] if there is no certificate of our own.
func ServerTLS(m *Manager, id Identity) *tls.Config {
	cfg := m.cfg.TLS.base()
	cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		b, err := m.Get(hello.Context(), id)
		if err != nil {
			return nil, err
		}
		return m.serverConfig(b), nil
	}
	return cfg
}

// serverConfig is built per handshake: crypto/tls keeps nothing in it that a later handshake could use, as there are
// no session tickets.
func (m *Manager) serverConfig(b *Bundle) *tls.Config {
	cfg := m.cfg.TLS.base()
	cfg.Certificates = []tls.Certificate{b.Cert}
	// Request and not Require: VerifyConnection then gives the refusal a name of ours.
	cfg.ClientAuth = tls.RequestClientCert
	cfg.VerifyConnection = func(state tls.ConnectionState) error {
		if err := verifyClient(state, b.Roots, b.Identity.TrustDomain, time.Now()); err != nil {
			return err
		}
		return m.cfg.CRL.Check(state.PeerCertificates)
	}
	return cfg
}

// ClientTLS returns the configuration to dial a peer as id. The peer must be any of expected, which are SPIFFE URIs.
//
// Certificate and roots are looked up in m for each handshake. A refused server fails the handshake with
// [*UnexpectedError], [*ExpiredError], [*UntrustedError], [*RevokedError], [*ChainLengthError], [*SuiteError] or [ErrNotH2] in
// the error's chain; with [*UnavailableError] if there is no certificate of our own.
func ClientTLS(m *Manager, id Identity, expected []string) *tls.Config {
	cfg := m.cfg.TLS.base()
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
		if err := verifyServer(state, b.Roots, expected, time.Now()); err != nil {
			return err
		}
		return m.cfg.CRL.Check(state.PeerCertificates)
	}
	return cfg
}
