// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// forgeries are n self-made CAs with the subject of ca's intermediate, and one leaf of theirs with the serial number.
func forgeries(t *testing.T, ca *authority, n int, serial *big.Int) []*x509.Certificate {
	t.Helper()
	key := newKey(t)
	made := func(i int) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(int64(i)), RawSubject: ca.intermediate.RawSubject, IsCA: true, BasicConstraintsValid: true,
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		}
	}
	var certs []*x509.Certificate
	for i := range n {
		certs = append(certs, sign(t, made(i+1), made(i+1), &key.PublicKey, key))
	}
	leaf := &x509.Certificate{SerialNumber: serial, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}
	return append(certs, sign(t, leaf, certs[0], &key.PublicKey, key))
}

// mustChain is what a peer shows, parsed.
func mustChain(t *testing.T, c tls.Certificate) []*x509.Certificate {
	t.Helper()
	var chain []*x509.Certificate
	for _, der := range c.Certificate {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		chain = append(chain, cert)
	}
	return chain
}

// TestCRLIsHashedOncePerIssuer: however many issuers of its own making a peer sends, and however many ask at a time.
func TestCRLIsHashedOncePerIssuer(t *testing.T) {
	ca := newAuthority(t)
	peer := certFor(t, ca, testID("peer"), nil)
	crl, _, _ := mustOpenCRL(t, ca.revoke(t, peer))
	var hashed atomic.Int32
	verify := crl.lists[0].signers.verify
	crl.lists[0].signers.verify = func(issuer *x509.Certificate) bool {
		hashed.Add(1)
		return verify(issuer)
	}
	crl.learn([]*x509.Certificate{ca.root})
	chain := mustChain(t, peer)
	chain = append(append(chain[:1:1], forgeries(t, ca, 100, leafOf(t, peer).SerialNumber)...), chain[1])
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if err := crl.Check(chain); !asErr[*RevokedError](err) {
				t.Errorf("check: %v, want *RevokedError", err)
			}
		})
	}
	all.Wait()
	if got := hashed.Load(); got != 1 {
		t.Errorf("the list was hashed %d times, want once, for the real intermediate", got)
	}
}

// TestForgedIssuersRevokeNothing: nor do leaves that a peer makes up.
func TestForgedIssuersRevokeNothing(t *testing.T) {
	ca := newAuthority(t)
	crl, _, _ := mustOpenCRL(t, ca.revoke(t, certFor(t, ca, testID("other"), nil)))
	crl.learn([]*x509.Certificate{ca.root, ca.intermediate})
	for serial := range crl.lists[0].when {
		chain := mustChain(t, certFor(t, ca, testID("peer"), nil))
		chain = append(chain, forgeries(t, ca, 1, new(big.Int).SetBytes([]byte(serial)))...)
		if err := crl.Check(chain); err != nil {
			t.Errorf("check: %v, want it to pass", err)
		}
	}
}

func TestSignersAreBounded(t *testing.T) {
	s := signers{verify: func(*x509.Certificate) bool { return true }}
	for i := range 3 * maxSigners {
		if !s.has(&x509.Certificate{Raw: big.NewInt(int64(i + 1)).Bytes()}) || len(s.known) > maxSigners {
			t.Fatalf("%d are remembered, want at most %d and the right answer", len(s.known), maxSigners)
		}
	}
}

// TestCheckDoesNotWaitForOthersHashes: while a new issuer is compared with the lists.
func TestCheckDoesNotWaitForOthersHashes(t *testing.T) {
	ca := newAuthority(t)
	crl, _, _ := mustOpenCRL(t, ca.revoke(t))
	hashing, goOn := make(chan struct{}), make(chan struct{})
	crl.lists[0].signers.verify = func(*x509.Certificate) bool {
		close(hashing)
		<-goOn
		return true
	}
	var learned sync.WaitGroup
	learned.Go(func() { crl.learn([]*x509.Certificate{ca.root, ca.intermediate}) })
	<-hashing
	checked := make(chan error, 1)
	go func() { checked <- crl.Check([]*x509.Certificate{ca.intermediate}) }()
	select {
	case err := <-checked:
		if err != nil {
			t.Errorf("check: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("check waits for the hash")
	}
	close(goOn)
	learned.Wait()
}

// TestNoWatcherWaitsForAnother: each of two returns only when the other was called too.
func TestNoWatcherWaitsForAnother(t *testing.T) {
	ca := newAuthority(t)
	crl, path, _ := mustOpenCRL(t, ca.revoke(t))
	first, second := make(chan struct{}), make(chan struct{})
	meet := func(mine, other chan struct{}) func() {
		return func() {
			close(mine)
			select {
			case <-other:
			case <-time.After(10 * time.Second):
				t.Error("one watcher waits for the other")
			}
		}
	}
	crl.OnChange(meet(first, second))
	crl.OnChange(meet(second, first))
	writeFile(t, path, ca.revoke(t, certFor(t, ca, testID("peer"), nil)))
	if err := crl.Reload(); err != nil {
		t.Fatal(err)
	}
}

// TestLongChainsAreRefused: in both directions, by their number.
func TestLongChainsAreRefused(t *testing.T) {
	ca := newAuthority(t)
	m := managerOf(t, ca)
	peer := certFor(t, ca, testID("peer"), nil)
	for n, refused := range map[int]bool{maxChain: false, maxChain + 1: true} {
		long := peer
		long.Certificate = peer.Certificate[:2:2]
		for _, cert := range forgeries(t, ca, n-3, big.NewInt(1)) {
			long.Certificate = append(long.Certificate, cert.Raw)
		}
		_, s := handshake(t, foreign(long), ServerTLS(m, testID("bob")))
		c, _ := handshake(t, ClientTLS(m, testID("alice"), []string{testID("peer").String()}), foreign(long))
		for end, err := range map[string]error{"server": s.err, "client": c.err} {
			if asErr[*ChainLengthError](err) != refused || !refused && err != nil {
				t.Errorf("%d certificates, %s: %v, want refused %v", n, end, err, refused)
			}
		}
	}
}
