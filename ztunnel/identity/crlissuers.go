// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"slices"
	"sync"
)

// issuersOf returns those whose lists count for a chain, leaf first: the known ones, and those of the chain that lead to
// one of them by their signatures. What else a peer sends is of its own making.
func issuersOf(chain, known []*x509.Certificate) []*x509.Certificate {
	all, rest := slices.Clip(known), slices.Clone(chain[1:])
	for above := known; len(above) > 0; {
		var below []*x509.Certificate
		rest = slices.DeleteFunc(rest, func(cert *x509.Certificate) bool {
			signed := slices.ContainsFunc(above, func(issuer *x509.Certificate) bool { return issuedBy(cert, issuer) })
			if signed {
				below = append(below, cert)
			}
			return signed
		})
		all, above = append(all, below...), below
	}
	return all
}

// issuedBy tells whether issuer is a CA that signed cert.
func issuedBy(cert, issuer *x509.Certificate) bool {
	return bytes.Equal(cert.RawIssuer, issuer.RawSubject) && cert.CheckSignatureFrom(issuer) == nil
}

// maxSigners bounds the issuers that a list remembers. A mesh has a few; past the bound all are asked for again.
const maxSigners = 64

// signers remembers for one list which issuers made it: to verify a signature is to hash the list, which may have 128 MB.
// Safe for concurrent use.
type signers struct {
	verify func(issuer *x509.Certificate) bool // hashes

	mu    sync.Mutex // not held while a list is hashed
	known map[[sha256.Size]byte]func() bool
}

// has hashes the list once for each issuer; who asks meanwhile waits for that.
func (s *signers) has(issuer *x509.Certificate) bool {
	return s.once(issuer)()
}

func (s *signers) once(issuer *x509.Certificate) func() bool {
	key := sha256.Sum256(issuer.Raw)
	s.mu.Lock()
	defer s.mu.Unlock()
	if answer := s.known[key]; answer != nil {
		return answer
	}
	if s.known == nil || len(s.known) >= maxSigners {
		s.known = map[[sha256.Size]byte]func() bool{}
	}
	answer := sync.OnceValue(func() bool { return s.verify(issuer) })
	s.known[key] = answer
	return answer
}
