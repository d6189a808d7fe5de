// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"
)

// revocations is one issuer's list of certificates that are no longer good. Safe for concurrent use.
type revocations struct {
	list    *x509.RevocationList
	when    map[string]time.Time // of revocation, by serial number
	signers signers
}

// crlType is the PEM label of a list. RFC 7468, section 6.
const crlType = "X509 CRL"

// removedFromCRL is the reason code of an entry that takes an earlier one back. RFC 5280, section 5.3.1.
const removedFromCRL = 8

var (
	oidDeltaCRL     = asn1.ObjectIdentifier{2, 5, 29, 27}
	oidDistribution = asn1.ObjectIdentifier{2, 5, 29, 28}
)

// parseCRLs reads a file of one or more PEM lists. It takes all of it or nothing: a file that is cut short must not take
// revocations back.
func parseCRLs(text []byte) ([]*revocations, error) {
	var lists []*revocations
	blocks := bytes.Count(text, []byte("-----BEGIN"))
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != crlType {
			return nil, fmt.Errorf("PEM block %q, want %q", block.Type, crlType)
		}
		list, err := newRevocations(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("PEM block %d: %w", len(lists)+1, err)
		}
		lists = append(lists, list)
	}
	if len(lists) == 0 {
		return nil, errors.New("no PEM block \"" + crlType + "\"")
	}
	if len(lists) != blocks {
		return nil, fmt.Errorf("%d of %d PEM blocks are damaged", blocks-len(lists), blocks)
	}
	return lists, nil
}

func newRevocations(der []byte) (*revocations, error) {
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, err
	}
	// RFC 5280, section 5.2: a list with a critical extension that is not understood says nothing about any certificate.
	for _, e := range list.Extensions {
		if e.Critical && !e.Id.Equal(oidDeltaCRL) && !e.Id.Equal(oidDistribution) {
			return nil, fmt.Errorf("critical extension %s is not supported", e.Id)
		}
	}
	r := &revocations{list: list, when: make(map[string]time.Time, len(list.RevokedCertificateEntries))}
	r.signers.verify = func(issuer *x509.Certificate) bool { return list.CheckSignatureFrom(issuer) == nil }
	for _, entry := range list.RevokedCertificateEntries {
		// Critical means certificateIssuer, of indirect lists: the entry is about another issuer's certificate.
		for _, e := range entry.Extensions {
			if e.Critical {
				return nil, fmt.Errorf("entry %s: critical extension %s is not supported", entry.SerialNumber, e.Id)
			}
		}
		if entry.ReasonCode != removedFromCRL {
			r.when[string(entry.SerialNumber.Bytes())] = entry.RevocationTime
		}
	}
	return r, nil
}

// names tells whether cert is on the list, and since when, if the list is of its issuer: whose name it has is all that was
// compared.
func (r *revocations) names(cert *x509.Certificate) (time.Time, bool) {
	if !bytes.Equal(r.list.RawIssuer, cert.RawIssuer) {
		return time.Time{}, false
	}
	since, listed := r.when[string(cert.SerialNumber.Bytes())]
	return since, listed
}

// revokes tells whether cert, which is on the list, and the list itself are of one of issuers.
func (r *revocations) revokes(cert *x509.Certificate, issuers []*x509.Certificate) bool {
	return slices.ContainsFunc(issuers, func(issuer *x509.Certificate) bool {
		return issuedBy(cert, issuer) && r.by(issuer)
	})
}

// by tells whether issuer made the list.
func (r *revocations) by(issuer *x509.Certificate) bool {
	return bytes.Equal(r.list.RawIssuer, issuer.RawSubject) && r.signers.has(issuer)
}
