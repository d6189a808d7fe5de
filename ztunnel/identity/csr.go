// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
)

var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// uriTag is GeneralName's choice uniformResourceIdentifier. RFC 5280, section 4.2.1.6.
const uriTag = 6

// newRequest makes a fresh P-256 key, which never leaves memory, and a PEM request to certify it for id.
//
// RFC 5280, section 4.2.1.6: the alternative name is critical because the subject is empty. x509 would mark it
// critical only in certificates, not in requests, so the extension is encoded here.
func newRequest(id Identity) (*ecdsa.PrivateKey, string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, "", err
	}
	names, err := asn1.Marshal([]asn1.RawValue{
		{Class: asn1.ClassContextSpecific, Tag: uriTag, Bytes: []byte(id.String())},
	})
	if err != nil {
		return nil, "", err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		SignatureAlgorithm: x509.ECDSAWithSHA256,
		ExtraExtensions:    []pkix.Extension{{Id: oidSubjectAltName, Critical: true, Value: names}},
	}, key)
	if err != nil {
		return nil, "", err
	}
	return key, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), nil
}
