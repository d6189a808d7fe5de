// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"crypto/tls"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"time"
)

var (
	// ErrNoCertificate means that the peer of a handshake proved no identity at all.
	ErrNoCertificate = errors.New("peer presented no certificate")
	// ErrNotH2 means that the peer did not agree on ALPN "h2": it speaks TLS, but not HBONE.
	ErrNotH2 = errors.New(`peer did not negotiate ALPN "h2"`)
	// ErrForgotten means that nobody wants the identity any more, or that the Manager was closed.
	ErrForgotten = errors.New("identity is no longer wanted")
)

// UnavailableError means that there is no certificate for an identity of our own to use.
type UnavailableError struct {
	Identity Identity
	Err      error
}

func (e *UnavailableError) Error() string {
	return fmt.Sprintf("no certificate for %s: %v", e.Identity, e.Err)
}

func (e *UnavailableError) Unwrap() error { return e.Err }

// TrustDomainError means that no name of the peer is in the trust domain of the server.
type TrustDomainError struct {
	Got  []string // the peer's URI names
	Want string   // the server's trust domain
}

func (e *TrustDomainError) Error() string {
	return fmt.Sprintf("trust domain mismatch: peer is %s, want trust domain %q", list(e.Got), e.Want)
}

// UnexpectedError means that the server is genuine but not who was dialled.
type UnexpectedError struct {
	Got  []string // the peer's URI names
	Want []string // any of these would do
}

func (e *UnexpectedError) Error() string {
	return fmt.Sprintf("unexpected identity: got %s, want %s", list(e.Got), list(e.Want))
}

// ChainLengthError means that the peer sent more certificates than are looked at.
type ChainLengthError struct{ Got int }

func (e *ChainLengthError) Error() string {
	return fmt.Sprintf("peer presented %d certificates, at most %d are taken", e.Got, maxChain)
}

// SuiteError means that the peer chose a cipher suite that the mesh does not use.
type SuiteError struct{ Suite uint16 }

func (e *SuiteError) Error() string {
	return fmt.Sprintf("peer chose cipher suite %s, want AES-GCM", tls.CipherSuiteName(e.Suite))
}

// ExpiredError means that a certificate of the peer's chain is not valid at the time: over, or not begun.
type ExpiredError struct {
	Peer                []string // URI names of the certificate, which may be an intermediate without any
	NotBefore, NotAfter time.Time
	Now                 time.Time
}

func (e *ExpiredError) Error() string {
	if e.Now.Before(e.NotBefore) {
		return fmt.Sprintf("certificate of %s is not valid before %s, it is %s", list(e.Peer), stamp(e.NotBefore), stamp(e.Now))
	}
	return fmt.Sprintf("certificate of %s expired at %s, it is %s", list(e.Peer), stamp(e.NotAfter), stamp(e.Now))
}

// UntrustedError means that the peer's chain does not lead to the trust anchors, or may not be used for its role.
type UntrustedError struct {
	Peer []string
	Err  error
}

func (e *UntrustedError) Error() string {
	return fmt.Sprintf("certificate of %s is not trusted: %v", list(e.Peer), e.Err)
}

func (e *UntrustedError) Unwrap() error { return e.Err }

// RevokedError means that a certificate of the peer's chain was taken back by its issuer.
type RevokedError struct {
	Peer         []string // URI names of the leaf
	Intermediate bool     // not the leaf itself is revoked
	Serial       *big.Int // of what is
	Since        time.Time
}

func (e *RevokedError) Error() string {
	what := "certificate"
	if e.Intermediate {
		what = "intermediate certificate"
	}
	return fmt.Sprintf("%s %x of %s was revoked at %s", what, e.Serial, list(e.Peer), stamp(e.Since))
}

func list(names []string) string {
	if len(names) == 0 {
		return "nobody"
	}
	return strings.Join(names, " or ")
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
