// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"slices"
	"time"
)

// PeerIdentity returns who the other end of a finished handshake is: the first of its names that is an Identity.
func PeerIdentity(state tls.ConnectionState) (Identity, bool) {
	if len(state.PeerCertificates) == 0 {
		return Identity{}, false
	}
	for _, name := range uris(state.PeerCertificates[0]) {
		if id, err := ParseIdentity(name); err == nil {
			return id, true
		}
	}
	return Identity{}, false
}

// verifyClient is what a server of trustDomain asks of a peer. Who may connect is the policies' business, not ours.
func verifyClient(state tls.ConnectionState, roots *x509.CertPool, trustDomain string, now time.Time) error {
	if err := verifyPeer(state, roots, x509.ExtKeyUsageClientAuth, now); err != nil {
		return err
	}
	names := uris(state.PeerCertificates[0])
	for _, name := range names {
		if id, err := ParseIdentity(name); err == nil && id.TrustDomain == trustDomain {
			return nil
		}
	}
	return &TrustDomainError{Got: names, Want: trustDomain}
}

// verifyServer is what a client asks of a peer: to be any of expected. Names of hosts play no part.
func verifyServer(state tls.ConnectionState, roots *x509.CertPool, expected []string, now time.Time) error {
	if err := verifyPeer(state, roots, x509.ExtKeyUsageServerAuth, now); err != nil {
		return err
	}
	names := uris(state.PeerCertificates[0])
	for _, name := range names {
		if slices.Contains(expected, name) {
			return nil
		}
	}
	return &UnexpectedError{Got: names, Want: expected}
}

// maxChain is how many certificates a peer may send: a leaf, and more intermediates than meshes have. Each costs work for
// every handshake, and memory for as long as the connection lasts.
const maxChain = 10

func verifyPeer(state tls.ConnectionState, roots *x509.CertPool, usage x509.ExtKeyUsage, now time.Time) error {
	if len(state.PeerCertificates) == 0 {
		return ErrNoCertificate
	}
	if n := len(state.PeerCertificates); n > maxChain {
		return &ChainLengthError{Got: n}
	}
	if err := verifyChain(state.PeerCertificates, roots, usage, now); err != nil {
		return err
	}
	if state.NegotiatedProtocol != alpn {
		return ErrNotH2
	}
	return checkSuite(state)
}

// verifyChain checks that certs, leaf first, lead to roots at now. A certificate without extended key usages is good for
// any usage, one with usages must have the one asked for.
func verifyChain(certs []*x509.Certificate, roots *x509.CertPool, usage x509.ExtKeyUsage, now time.Time) error {
	intermediates := x509.NewCertPool()
	for _, cert := range certs[1:] {
		intermediates.AddCert(cert)
	}
	_, err := certs[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage},
	})
	if err == nil {
		return nil
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		cert := invalid.Cert
		return &ExpiredError{Peer: uris(cert), NotBefore: cert.NotBefore, NotAfter: cert.NotAfter, Now: now}
	}
	return &UntrustedError{Peer: uris(certs[0]), Err: err}
}
