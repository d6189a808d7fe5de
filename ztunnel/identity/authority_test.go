// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"
)

// authority is a CA in memory: root, intermediate, and what a test wants to be wrong.
type authority struct {
	root, intermediate       *x509.Certificate
	rootKey, intermediateKey *ecdsa.PrivateKey

	mu       sync.Mutex
	ttl      time.Duration
	backdate time.Duration // how long before now certificates begin
	fail     error
	hold     chan struct{}             // Sign waits for it if not nil
	edit     func(*x509.Certificate)   // of each leaf before it is signed
	chain    func([]string) []string   // of each answer
	asked    []Identity                // in the order of the requests' arrival
	times    []time.Time               // of asked
	csrs     []x509.CertificateRequest // of asked
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{ttl: time.Hour, rootKey: newKey(t), intermediateKey: newKey(t)}
	now := time.Now()
	ca := func(name string) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: serial(), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
			NotBefore: now.AddDate(-1, 0, 0), NotAfter: now.AddDate(10, 0, 0), KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		}
	}
	root := ca("root")
	a.root = sign(t, root, root, &a.rootKey.PublicKey, a.rootKey)
	a.intermediate = sign(t, ca("intermediate"), a.root, &a.intermediateKey.PublicKey, a.rootKey)
	return a
}

// Sign implements [CA].
func (a *authority) Sign(ctx context.Context, id Identity, csr string) ([]string, error) {
	block, _ := pem.Decode([]byte(csr))
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	a.asked, a.times, a.csrs = append(a.asked, id), append(a.times, time.Now()), append(a.csrs, *request)
	hold := a.hold
	a.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fail != nil {
		return nil, a.fail
	}
	leaf, err := a.leaf(id, request.PublicKey)
	if err != nil {
		return nil, err
	}
	chain := []string{leaf, pemText(a.intermediate), pemText(a.root)}
	if a.chain != nil {
		chain = a.chain(chain)
	}
	return chain, nil
}

func (a *authority) leaf(id Identity, public any) (string, error) {
	uri, err := url.Parse(id.String())
	if err != nil {
		return "", err
	}
	begin := time.Now().Add(-a.backdate)
	template := &x509.Certificate{
		SerialNumber: serial(), URIs: []*url.URL{uri}, NotBefore: begin, NotAfter: begin.Add(a.ttl),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	if a.edit != nil {
		a.edit(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.intermediate, public, a.intermediateKey)
	if err != nil {
		return "", err
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), nil
}

// set changes a's behaviour while it may be in use.
func (a *authority) set(change func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change()
}

func (a *authority) requests() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.asked)
}

// log returns who was asked for, and when.
func (a *authority) log() (names []string, times []time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, id := range a.asked {
		names = append(names, id.ServiceAccount)
	}
	return names, slices.Clone(a.times)
}

var errRefused = errors.New("refused by the test")

func sign(t testing.TB, template, parent *x509.Certificate, public *ecdsa.PublicKey, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		t.Fatalf("sign: %v", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatalf("parse: %v", err)
	}
	return cert
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatalf("generate key: %v", err)
	}
	return key
}

func serial() *big.Int {
	n, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	return n
}

func pemText(cert *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
}
