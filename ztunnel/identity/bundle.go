// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Bundle is a certificate of ours and the trust anchors that came with it. Immutable.
type Bundle struct {
	Identity Identity
	// Cert is the leaf with its intermediates, without the root. Leaf is set. The key is in memory only.
	Cert tls.Certificate
	// Roots verify peers; they come from the CA's answer, not from the file that secures the channel to the CA.
	Roots     *x509.CertPool
	RootCerts []*x509.Certificate
}

// Expired tells whether the certificate may no longer be shown at now.
func (b *Bundle) Expired(now time.Time) bool { return now.After(b.Cert.Leaf.NotAfter) }

// halfLife is when a new certificate should be asked for.
func (b *Bundle) halfLife() time.Time {
	leaf := b.Cert.Leaf
	return leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 2)
}

// issuers are the certificates of CAs that came with ours.
func (b *Bundle) issuers() []*x509.Certificate {
	all := slices.Clone(b.RootCerts)
	for _, der := range b.Cert.Certificate[1:] {
		if cert, err := x509.ParseCertificate(der); err == nil {
			all = append(all, cert)
		}
	}
	return all
}

// newBundle accepts a CA's answer: leaf first, then intermediates, the root or roots in the last element.
//
// The answer is good only if the leaf names exactly id, certifies key, is valid at now and leads to those roots.
func newBundle(id Identity, key *ecdsa.PrivateKey, chain []string, now time.Time) (*Bundle, error) {
	if len(chain) < 2 {
		return nil, fmt.Errorf("certificate chain has %d elements, want at least leaf and root", len(chain))
	}
	var certs []*x509.Certificate
	for i, text := range chain[:len(chain)-1] {
		parsed, err := parsePEM(text)
		if err != nil {
			return nil, fmt.Errorf("certificate chain element %d: %w", i, err)
		}
		certs = append(certs, parsed...)
	}
	roots, err := parsePEM(chain[len(chain)-1])
	if err != nil {
		return nil, fmt.Errorf("certificate chain, root: %w", err)
	}
	b := &Bundle{Identity: id, RootCerts: roots, Roots: x509.NewCertPool()}
	for _, root := range roots {
		b.Roots.AddCert(root)
	}
	b.Cert = tls.Certificate{PrivateKey: key, Leaf: certs[0]}
	for i, cert := range certs {
		if i > 0 && bytes.Equal(cert.RawSubject, cert.RawIssuer) {
			continue // a root that the CA repeats
		}
		b.Cert.Certificate = append(b.Cert.Certificate, cert.Raw)
	}
	if err := b.accept(certs, now); err != nil {
		return nil, err
	}
	return b, nil
}

func (b *Bundle) accept(certs []*x509.Certificate, now time.Time) error {
	leaf := certs[0]
	if names := uris(leaf); len(names) != 1 || names[0] != b.Identity.String() {
		return &UnexpectedError{Got: names, Want: []string{b.Identity.String()}}
	}
	public, ok := leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(b.Cert.PrivateKey.(*ecdsa.PrivateKey).Public()) {
		return errors.New("certificate is for another key than the one requested")
	}
	return verifyChain(certs, b.Roots, x509.ExtKeyUsageAny, now)
}

// parsePEM reads one or more certificates.
func parsePEM(text string) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("PEM block %q, want CERTIFICATE", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, errors.New("no PEM certificate")
	}
	return certs, nil
}

func uris(cert *x509.Certificate) []string {
	var names []string
	for _, uri := range cert.URIs {
		names = append(names, uri.String())
	}
	return names
}
