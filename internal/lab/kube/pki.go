// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

// pki is the cluster's CA, and a folder of what it signed.
type pki struct {
	dir  string
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newPKI(t testing.TB, dir, address string) *pki {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	p := &pki{dir: dir, key: newKey(t)}
	ca := template("lab-ca")
	ca.IsCA, ca.BasicConstraintsValid, ca.KeyUsage = true, true, x509.KeyUsageCertSign
	p.cert = p.sign(t, ca, ca, p.key)
	p.write(t, "ca.crt", "CERTIFICATE", p.cert.Raw)
	p.writeKey(t, "ca.key", p.key)

	server, key := template("kube-apiserver"), newKey(t)
	server.DNSNames = []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"}
	server.IPAddresses = []net.IP{net.ParseIP(address), net.ParseIP(ServiceAddress), net.ParseIP(ServiceAddress6)}
	p.write(t, "server.crt", "CERTIFICATE", p.sign(t, server, p.cert, key).Raw)
	p.writeKey(t, "server.key", key)
	p.serviceAccountKey(t)
	return p
}

// serviceAccountKey makes the key pair of the tokens.
func (p *pki) serviceAccountKey(t testing.TB) {
	t.Helper()
	key := newKey(t)
	p.writeKey(t, "sa.key", key)
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	p.write(t, "sa.pub", "PUBLIC KEY", public)
}

func template(name string, organizations ...string) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<62)) // crypto/rand does not fail
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name, Organization: organizations},
		NotBefore:    time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (p *pki) sign(t testing.TB, template, parent *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, p.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func (p *pki) path(name string) string { return filepath.Join(p.dir, name) }

func (p *pki) write(t testing.TB, name, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(p.path(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (p *pki) writeKey(t testing.TB, name string, key *ecdsa.PrivateKey) {
	t.Helper()
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	p.write(t, name, "EC PRIVATE KEY", der)
}

// user issues a certificate for clients, and for servers at the given addresses, and returns it and its key as PEM.
func (p *pki) user(t testing.TB, name string, groups []string, at ...net.IP) (cert, key []byte) {
	t.Helper()
	k := newKey(t)
	der, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	wanted := template(name, groups...)
	wanted.IPAddresses = at
	leaf := p.sign(t, wanted, p.cert, k)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw}),
		pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
}

func (p *pki) restConfig(t testing.TB, url, user string, groups []string) *rest.Config {
	t.Helper()
	cert, key := p.user(t, user, groups)
	return &rest.Config{Host: url, QPS: -1, TLSClientConfig: rest.TLSClientConfig{CAFile: p.path("ca.crt"), CertData: cert, KeyData: key}}
}

func (p *pki) kubeconfig(t testing.TB, url, user string, groups []string) string {
	t.Helper()
	cert, key := p.user(t, user, groups)
	ca, err := os.ReadFile(p.path("ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "kubeconfig")
	err = clientcmd.WriteToFile(api.Config{
		Clusters:       map[string]*api.Cluster{"lab": {Server: url, CertificateAuthorityData: ca}},
		AuthInfos:      map[string]*api.AuthInfo{user: {ClientCertificateData: cert, ClientKeyData: key}},
		Contexts:       map[string]*api.Context{"lab": {Cluster: "lab", AuthInfo: user}},
		CurrentContext: "lab",
	}, path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// CA is the file of the cluster's certificate authority.
func (s *APIServer) CA() string { return s.pki.path("ca.crt") }

// CAKey is the file of its key.
func (s *APIServer) CAKey() string { return s.pki.path("ca.key") }

// TokenKey is the file of the key that signs service accounts' tokens.
func (s *APIServer) TokenKey() string { return s.pki.path("sa.key") }

// Certificate issues one for a user who is in group and serves at the given addresses, and returns the paths of
// certificate and key.
func (s *APIServer) Certificate(user, group string, at ...net.IP) (cert, key string) {
	s.t.Helper()
	c, k := s.pki.user(s.t, user, []string{group}, at...)
	dir := s.t.TempDir()
	cert, key = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	if err := errors.Join(os.WriteFile(cert, c, 0o600), os.WriteFile(key, k, 0o600)); err != nil {
		s.t.Fatal(err)
	}
	return cert, key
}
