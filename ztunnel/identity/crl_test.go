// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// crlOf is a list of issuer's, PEM.
func crlOf(t testing.TB, issuer *x509.Certificate, key *ecdsa.PrivateKey, edit func(*x509.RevocationList), serials ...*big.Int) string {
	t.Helper()
	list := &x509.RevocationList{Number: serial(), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}
	for _, n := range serials {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: n, RevocationTime: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)})
	}
	if edit != nil {
		edit(list)
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, issuer, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: crlType, Bytes: der}))
}

// revoke is a list of ca's intermediate, which issues all leaves.
func (a *authority) revoke(t testing.TB, certs ...tls.Certificate) string {
	t.Helper()
	var serials []*big.Int
	for _, c := range certs {
		serials = append(serials, leafOf(t, c).SerialNumber)
	}
	return crlOf(t, a.intermediate, a.intermediateKey, nil, serials...)
}

func leafOf(t testing.TB, c tls.Certificate) *x509.Certificate {
	t.Helper()
	leaf, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

// logged is a log to look at.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) has(part string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.text.String(), part)
}

func mustOpenCRL(t *testing.T, text string) (*CRL, string, *logged) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ca-crl.pem")
	writeFile(t, path, text)
	log := &logged{}
	c, err := OpenCRL(path, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return c, path, log
}

// TestCRLRejectsRevokedCert: crl_inbound_rejects_revoked_cert and crl_outbound_rejects_revoked_cert of ambient section
// 11.1, over real TLS, and what must pass.
func TestCRLRejectsRevokedCert(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	peer := certFor(t, ca, testID("peer"), nil)
	forged := *ca.intermediate
	dead := func(l *x509.RevocationList) {
		l.ThisUpdate, l.NextUpdate = time.Now().AddDate(0, 0, -2), time.Now().AddDate(0, 0, -1)
	}
	lifted := func(l *x509.RevocationList) { l.RevokedCertificateEntries[0].ReasonCode = removedFromCRL }
	number := leafOf(t, peer).SerialNumber
	for _, test := range []struct {
		name, file, want string
	}{
		{"leaf", ca.revoke(t, peer), "certificate " + number.Text(16) + " of spiffe://cluster.local/ns/shop/sa/peer was revoked at 2026-01-02T03:04:05Z"},
		{"intermediate", crlOf(t, ca.root, ca.rootKey, nil, ca.intermediate.SerialNumber), "intermediate certificate"},
		{"second list of the file", other.revoke(t) + ca.revoke(t, peer), "certificate"},
		{"list past its next update", crlOf(t, ca.intermediate, ca.intermediateKey, dead, number), "certificate"},
		{"unknown status", crlOf(t, ca.root, ca.rootKey, nil, big.NewInt(1)), ""},
		{"other serial", ca.revoke(t, certFor(t, ca, testID("another"), nil)), ""},
		{"same serial of another issuer", crlOf(t, ca.root, ca.rootKey, nil, number), ""},
		{"same issuer's name, another's key", crlOf(t, &forged, other.intermediateKey, nil, number), ""},
		{"taken back", crlOf(t, ca.intermediate, ca.intermediateKey, lifted, number), ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			crl, _, _ := mustOpenCRL(t, test.file)
			m := NewManager(Config{CA: ca, CRL: crl})
			defer m.Close()
			_, s := handshake(t, foreign(peer), ServerTLS(m, testID("bob")))
			c, _ := handshake(t, ClientTLS(m, testID("alice"), []string{testID("peer").String()}), foreign(peer))
			for name, err := range map[string]error{"crl_inbound_rejects_revoked_cert": s.err, "crl_outbound_rejects_revoked_cert": c.err} {
				if test.want == "" && err != nil {
					t.Errorf("%s: %v, want it to pass", name, err)
				}
				if test.want != "" && (!asErr[*RevokedError](err) || !strings.Contains(err.Error(), test.want)) {
					t.Errorf("%s: %v (%T), want %q", name, err, err, test.want)
				}
			}
		})
	}
}

// TestCRLOfIssuerThatThePeerDoesNotSend: the intermediate is not in the peer's chain, but it came with our certificate as a
// trust anchor.
func TestCRLOfIssuerThatThePeerDoesNotSend(t *testing.T) {
	ca := newAuthority(t)
	ca.chain = func(chain []string) []string { return []string{chain[0], chain[1] + chain[2]} }
	peer := certFor(t, ca, testID("peer"), nil)
	peer.Certificate = peer.Certificate[:1]
	crl, _, _ := mustOpenCRL(t, ca.revoke(t, peer))
	m := NewManager(Config{CA: ca, CRL: crl})
	defer m.Close()
	if _, s := handshake(t, bare(peer), ServerTLS(m, testID("bob"))); !asErr[*RevokedError](s.err) {
		t.Errorf("server: %v, want *RevokedError", s.err)
	}
}

func TestCRLFileRefused(t *testing.T) {
	ca := newAuthority(t)
	good := ca.revoke(t)
	critical := crlOf(t, ca.intermediate, ca.intermediateKey, func(l *x509.RevocationList) {
		l.ExtraExtensions = []pkix.Extension{{Id: []int{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}
	})
	indirect := crlOf(t, ca.intermediate, ca.intermediateKey, func(l *x509.RevocationList) {
		l.RevokedCertificateEntries[0].ExtraExtensions = []pkix.Extension{{Id: []int{2, 5, 29, 29}, Critical: true, Value: []byte{5, 0}}}
	}, big.NewInt(7))
	for _, test := range []struct{ name, text, want string }{
		{"empty", "", `no PEM block "X509 CRL"`},
		{"not PEM", "revoked: 1\n", `no PEM block "X509 CRL"`},
		{"certificate", pemText(ca.root), `PEM block "CERTIFICATE", want "X509 CRL"`},
		{"garbage in PEM", "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n", "PEM block 1: x509: "},
		{"second list cut short", good + good[:len(good)/2], "1 of 2 PEM blocks are damaged"},
		{"critical extension", critical, "PEM block 1: critical extension 1.2.3 is not supported"},
		{"indirect list", indirect, "PEM block 1: entry 7: critical extension 2.5.29.29 is not supported"},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "crl.pem")
			writeFile(t, path, test.text)
			_, err := OpenCRL(path, slog.New(slog.DiscardHandler))
			if err == nil || !strings.HasPrefix(err.Error(), `CRL file "`+path+`": `+test.want) {
				t.Errorf("got %v, want file and %q", err, test.want)
			}
		})
	}
	missing := filepath.Join(t.TempDir(), "none.pem")
	if _, err := OpenCRL(missing, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), missing) {
		t.Errorf("missing file: %v, want an error that names it", err)
	}
}

// TestCRLFileIsFollowed: written in place, renamed over, and moved by a symbolic link as a ConfigMap's volume does it. A
// damaged file leaves the last good lists.
func TestCRLFileIsFollowed(t *testing.T) {
	ca := newAuthority(t)
	first, second := certFor(t, ca, testID("first"), nil), certFor(t, ca, testID("second"), nil)
	dir := t.TempDir()
	for version, text := range map[string]string{"v1": ca.revoke(t), "v2": ca.revoke(t, first)} {
		if err := os.Mkdir(filepath.Join(dir, version), 0o755); err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(dir, version, "ca-crl.pem"), text)
	}
	mustLink(t, "v1", filepath.Join(dir, "..data"))
	mustLink(t, "..data/ca-crl.pem", filepath.Join(dir, "ca-crl.pem"))
	log := &logged{}
	crl, err := OpenCRL(filepath.Join(dir, "ca-crl.pem"), slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	crl.settle = 10 * time.Millisecond
	crl.learn([]*x509.Certificate{ca.root})
	changed := make(chan struct{}, 100)
	crl.OnChange(func() { changed <- struct{}{} })
	mustWatch(t, crl)
	revoked := func(c tls.Certificate) bool {
		return crl.Check([]*x509.Certificate{leafOf(t, c), ca.intermediate}) != nil
	}
	if revoked(first) || revoked(second) {
		t.Fatal("revoked before the file says so")
	}
	mustLink(t, "v2", filepath.Join(dir, "..data.new"))
	mustRename(t, filepath.Join(dir, "..data.new"), filepath.Join(dir, "..data"))
	<-changed
	if !revoked(first) || revoked(second) {
		t.Error("after the link moved: want only the first revoked")
	}
	mustRename(t, filepath.Join(dir, "v1", "ca-crl.pem"), filepath.Join(dir, "ca-crl.pem")) // now a file
	<-changed
	if revoked(first) {
		t.Error("after the file was replaced: want nothing revoked")
	}
	writeFile(t, filepath.Join(dir, "ca-crl.pem"), ca.revoke(t, first, second))
	eventually(t, "the second is revoked", func() bool { return revoked(second) })
	writeFile(t, filepath.Join(dir, "ca-crl.pem"), "-----BEGIN X509 CRL-----\n")
	eventually(t, "error with file and reason", func() bool {
		return log.has("revocations stay as they were") && log.has("ca-crl.pem") && log.has("no PEM block")
	})
	if !revoked(first) || !revoked(second) {
		t.Error("after damage: want the last good lists")
	}
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	testutil.Eventually(t, 10*time.Second, func() error {
		if !is() {
			return fmt.Errorf("not yet: %s", what)
		}
		return nil
	})
}

func mustWatch(t *testing.T, crl *CRL) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- crl.Watch(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != context.Canceled {
			t.Errorf("Watch: %v", err)
		}
	})
}

func mustLink(t *testing.T, to, path string) {
	t.Helper()
	if err := os.Symlink(to, path); err != nil {
		t.Fatal(err)
	}
}

func mustRename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// TestCRLOfStrangerIsLogged: once our own certificate has told who the issuers are.
func TestCRLOfStrangerIsLogged(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	crl, _, log := mustOpenCRL(t, other.revoke(t))
	m := NewManager(Config{CA: ca, CRL: crl})
	defer m.Close()
	if log.has("issuer") {
		t.Error("logged before anybody could know")
	}
	mustGet(t, m, testID("bob"))
	if !log.has("CRL is of an issuer that is not known") || !log.has("CN=intermediate") {
		t.Errorf("log: %s", log.text.String())
	}
}

// FuzzParseCRLs: any file is taken whole or refused with a reason, and what is taken can be asked.
func FuzzParseCRLs(f *testing.F) {
	ca := newAuthority(f)
	f.Add([]byte(ca.revoke(f)))
	f.Add([]byte(crlOf(f, ca.root, ca.rootKey, nil, big.NewInt(1), big.NewInt(2)) + ca.revoke(f)))
	f.Add([]byte("-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"))
	f.Add([]byte(pemText(ca.root)))
	f.Fuzz(func(t *testing.T, text []byte) {
		lists, err := parseCRLs(text)
		if (err == nil) != (len(lists) > 0) {
			t.Fatalf("%d lists, %v", len(lists), err)
		}
		for _, list := range lists {
			if _, listed := list.names(ca.intermediate); listed && list.revokes(ca.intermediate, []*x509.Certificate{ca.root}) {
				t.Fatal("revoked without a signature of the issuer")
			}
		}
	})
}
