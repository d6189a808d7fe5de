// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	securityv1alpha1 "istio.io/api/security/v1alpha1"
	"k8s.io/apimachinery/pkg/util/validation"
)

const (
	// defaultCertTTL is given when the client asks for nothing.
	defaultCertTTL = 24 * time.Hour
	// clockSkew is how far behind this node's clock another's may be.
	clockSkew = 2 * time.Minute
	// impersonatedIdentity is the request's metadata key for whom the certificate is for.
	impersonatedIdentity = "ImpersonatedIdentity"
)

// ca is Istio's certificate service, for the ztunnel of this node: it names the pod identity it wants to act for.
type ca struct {
	securityv1alpha1.UnimplementedIstioCertificateServiceServer
	root        *root
	trustDomain string
	maxTTL      time.Duration
	// mayImpersonate returns why the caller may not have the identity, or nil.
	mayImpersonate func(ctx context.Context, identity string) error
	counters       *Counters
	log            *slog.Logger
}

// CreateCertificate signs the key of a CSR for an identity that the agent vouches for.
func (c *ca) CreateCertificate(ctx context.Context, req *securityv1alpha1.IstioCertificateRequest) (*securityv1alpha1.IstioCertificateResponse, error) {
	leaf, identity, err := c.issue(ctx, req)
	if err != nil {
		c.counters.CertificatesRefused.Add(1)
		c.log.Warn("certificate refused", "identity", identity, "error", status.Convert(err).Message())
		return nil, err
	}
	c.counters.CertificatesIssued.Add(1)
	c.log.Info("certificate issued", "identity", identity, "serial", leaf.SerialNumber.Text(16), "until", leaf.NotAfter)
	return &securityv1alpha1.IstioCertificateResponse{CertChain: []string{certPEM(leaf.Raw), c.root.pem}}, nil
}

func (c *ca) issue(ctx context.Context, req *securityv1alpha1.IstioCertificateRequest) (*x509.Certificate, string, error) {
	identity := req.GetMetadata().GetFields()[impersonatedIdentity].GetStringValue()
	if identity == "" {
		return nil, "", status.Errorf(codes.InvalidArgument, "metadata %s is missing: it says whom the certificate is for", impersonatedIdentity)
	}
	uri, err := parseIdentity(identity, c.trustDomain)
	if err != nil {
		return nil, identity, status.Errorf(codes.InvalidArgument, "%s: %v", impersonatedIdentity, err)
	}
	csr, err := parseCSR(req.GetCsr(), identity)
	if err != nil {
		return nil, identity, status.Errorf(codes.InvalidArgument, "csr: %v", err)
	}
	ttl, err := c.ttl(req.GetValidityDuration())
	if err != nil {
		return nil, identity, status.Errorf(codes.InvalidArgument, "validity_duration: %v", err)
	}
	if err := c.mayImpersonate(ctx, identity); err != nil {
		// istiod's code for this: a ztunnel takes it for "ask again later", as the pod may be about to become known.
		return nil, identity, status.Errorf(codes.Unauthenticated, "impersonation of %s refused: %v", identity, err)
	}
	leaf, err := c.sign(csr, uri, ttl)
	if err != nil {
		return nil, identity, status.Errorf(codes.Internal, "sign: %v", err)
	}
	return leaf, identity, nil
}

// ttl is what was asked for, within limits; asking for more than the most is answered with the most.
func (c *ca) ttl(seconds int64) (time.Duration, error) {
	most := c.maxTTL
	switch {
	case seconds < 0:
		return 0, fmt.Errorf("%d is negative", seconds)
	case seconds == 0:
		return min(defaultCertTTL, most), nil
	case seconds > int64(most/time.Second):
		return most, nil
	}
	return time.Duration(seconds) * time.Second, nil
}

// sign takes nothing from the CSR but its key.
func (c *ca) sign(csr *x509.CertificateRequest, uri *url.URL, ttl time.Duration) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	notAfter := now.Add(ttl)
	if notAfter.After(c.root.cert.NotAfter) {
		notAfter = c.root.cert.NotAfter
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		URIs:         []*url.URL{uri}, // the subject is empty, so this extension is critical
		// Clients renew at half of the whole validity: for short ones, do not let the skew eat that half.
		NotBefore:             now.Add(-min(clockSkew, ttl/10)),
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, c.root.cert, csr.PublicKey, c.root.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// parseIdentity admits exactly spiffe://<trust domain>/ns/<namespace>/sa/<service account>.
func parseIdentity(identity, trustDomain string) (*url.URL, error) {
	uri, err := url.Parse(identity)
	if err != nil {
		return nil, fmt.Errorf("%q is no URI", identity)
	}
	path := strings.Split(uri.EscapedPath(), "/") // "", ns, N, sa, S; an escape in a name is no name
	if len(path) != 5 || path[1] != "ns" || path[3] != "sa" ||
		len(validation.IsDNS1123Label(path[2]))+len(validation.IsDNS1123Subdomain(path[4])) > 0 {
		return nil, fmt.Errorf("%q is not spiffe://<trust domain>/ns/<namespace>/sa/<service account>", identity)
	}
	if want := "spiffe://" + trustDomain + "/ns/" + path[2] + "/sa/" + path[4]; identity != want || uri.String() != want {
		return nil, fmt.Errorf("%q is not in trust domain %q", identity, trustDomain)
	}
	return uri, nil
}

// parseCSR checks that the request is for identity and nothing else, by the holder of a P-256 key.
func parseCSR(text, identity string) (*x509.CertificateRequest, error) {
	block, rest := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE REQUEST" || strings.TrimSpace(string(rest)) != "" {
		return nil, errors.New("is not one PEM block of type CERTIFICATE REQUEST")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("signature: %w", err)
	}
	if key, ok := csr.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("key is not ECDSA P-256 but %s", csr.PublicKeyAlgorithm)
	}
	if len(csr.URIs) != 1 || len(csr.DNSNames)+len(csr.IPAddresses)+len(csr.EmailAddresses) > 0 {
		return nil, fmt.Errorf("must have one URI as its only subject alternative name (has %d URIs, %d others)",
			len(csr.URIs), len(csr.DNSNames)+len(csr.IPAddresses)+len(csr.EmailAddresses))
	}
	if got := csr.URIs[0].String(); got != identity {
		return nil, fmt.Errorf("is for %q, but %s is %q", got, impersonatedIdentity, identity)
	}
	return csr, nil
}
