// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	securityv1alpha1 "istio.io/api/security/v1alpha1"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

const testIdentity = "spiffe://cluster.local/ns/demo/sa/client"

func mustKey(t *testing.T, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func mustCSR(t *testing.T, key crypto.Signer, template *x509.CertificateRequest) string {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func csrFor(t *testing.T, identities ...string) *x509.CertificateRequest {
	t.Helper()
	csr := &x509.CertificateRequest{}
	for _, id := range identities {
		u, err := url.Parse(id)
		if err != nil {
			t.Fatal(err)
		}
		csr.URIs = append(csr.URIs, u)
	}
	return csr
}

func certRequest(t *testing.T, csr, identity string, seconds int64) *securityv1alpha1.IstioCertificateRequest {
	t.Helper()
	meta, err := structpb.NewStruct(map[string]any{impersonatedIdentity: identity})
	if err != nil {
		t.Fatal(err)
	}
	return &securityv1alpha1.IstioCertificateRequest{Csr: csr, ValidityDuration: seconds, Metadata: meta}
}

func (p *plane) allow(identities ...string) {
	may := func(id string) bool { return slices.Contains(identities, id) }
	p.mayImpersonate.Store(&may)
}

func (p *plane) createCertificate(req *securityv1alpha1.IstioCertificateRequest) (*securityv1alpha1.IstioCertificateResponse, error) {
	ctx, cancel := context.WithTimeout(context.Background(), waitFor)
	defer cancel()
	return securityv1alpha1.NewIstioCertificateServiceClient(p.conn).CreateCertificate(ctx, req)
}

func mustParse(t *testing.T, text string) *x509.Certificate {
	t.Helper()
	block, rest := pem.Decode([]byte(text))
	if block == nil || len(rest) > 0 {
		t.Fatalf("not one PEM block: %q", text)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestCertificateIsGoodForBothEnds(t *testing.T) {
	p := newPlane(t, nil)
	p.allow(testIdentity)
	key := mustKey(t, elliptic.P256())
	answer, err := p.createCertificate(certRequest(t, mustCSR(t, key, csrFor(t, testIdentity)), testIdentity, 3600))
	if err != nil {
		t.Fatal(err)
	}
	if len(answer.CertChain) != 2 {
		t.Fatalf("got %d certificates, want leaf and root", len(answer.CertChain))
	}
	leaf, root := mustParse(t, answer.CertChain[0]), mustParse(t, answer.CertChain[1])
	pool := x509.NewCertPool()
	pool.AddCert(root)
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
			t.Errorf("verify for usage %v: %v", usage, err)
		}
	}
	if !key.PublicKey.Equal(leaf.PublicKey) {
		t.Error("the certificate is for another key")
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != testIdentity || leaf.Subject.String() != "" || leaf.IsCA {
		t.Errorf("got names %v, subject %q, CA %v, want %s alone", leaf.URIs, leaf.Subject, leaf.IsCA, testIdentity)
	}
	if !root.IsCA || leaf.CheckSignatureFrom(root) != nil {
		t.Error("the last certificate is not the root that signed the first")
	}
	if left := time.Until(leaf.NotAfter); left > time.Hour || left < time.Hour-time.Minute {
		t.Errorf("valid for %v, want what was asked for, an hour", left)
	}
	if err := exec.Command("openssl", "version").Run(); err == nil {
		path := filepath.Join(t.TempDir(), "leaf.pem")
		if err := os.WriteFile(path, []byte(answer.CertChain[0]), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("openssl", "verify", "-CAfile", filepath.Join(p.cfg.CADir, rootCertFile), path).CombinedOutput()
		if err != nil {
			t.Errorf("openssl does not take it: %s", out)
		}
	}
}

func TestCertificateLifetimeIsCapped(t *testing.T) {
	p := newPlane(t, nil)
	p.stop()
	p.cfg.MaxCertTTL = time.Hour
	p.start()
	p.allow(testIdentity)
	csr := mustCSR(t, mustKey(t, elliptic.P256()), csrFor(t, testIdentity))
	for asked, want := range map[int64]time.Duration{0: time.Hour, 60: time.Minute, 86400: time.Hour, 1 << 62: time.Hour} {
		answer, err := p.createCertificate(certRequest(t, csr, testIdentity, asked))
		if err != nil {
			t.Fatal(err)
		}
		leaf := mustParse(t, answer.CertChain[0])
		if left := time.Until(leaf.NotAfter); left > want || left < want-30*time.Second {
			t.Errorf("asked for %d s: valid for %v, want %v", asked, left, want)
		}
		// Renewal is due at half of the validity: that must be ahead.
		if half := leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 2); time.Until(half) < want/4 {
			t.Errorf("asked for %d s: renewal is due in %v of %v", asked, time.Until(half), want)
		}
	}
}

func TestCertificateRefusals(t *testing.T) {
	p := newPlane(t, nil)
	p.allow(testIdentity)
	key := mustKey(t, elliptic.P256())
	good := mustCSR(t, key, csrFor(t, testIdentity))
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	dns := csrFor(t, testIdentity)
	dns.DNSNames = []string{"istiod.istio-system.svc"}
	const other = "spiffe://cluster.local/ns/demo/sa/server"
	for name, c := range map[string]struct {
		csr, identity string
		seconds       int64
		code          codes.Code
		want          string
	}{
		"not for a pod of this node": {mustCSR(t, key, csrFor(t, other)), other, 0, codes.Unauthenticated, "impersonation of " + other + " refused"},
		"no identity":                {good, "", 0, codes.InvalidArgument, "ImpersonatedIdentity is missing"},
		"another identity":           {good, other, 0, codes.InvalidArgument, `is for "` + testIdentity + `", but ImpersonatedIdentity is "` + other},
		"another trust domain":       {good, "spiffe://evil.example/ns/demo/sa/client", 0, codes.InvalidArgument, `is not in trust domain "cluster.local"`},
		"not a SPIFFE identity":      {good, "https://cluster.local/ns/demo/sa/client", 0, codes.InvalidArgument, "is not in trust domain"},
		"identity with a query":      {good, testIdentity + "?a=b", 0, codes.InvalidArgument, "is not in trust domain"},
		"identity with an escape":    {good, "spiffe://cluster.local/ns/de%6do/sa/client", 0, codes.InvalidArgument, "is not spiffe://<trust domain>"},
		"identity too long":          {good, testIdentity + "/x", 0, codes.InvalidArgument, "is not spiffe://<trust domain>/ns/<namespace>/sa/<service account>"},
		"identity without account":   {good, "spiffe://cluster.local/ns/demo/sa/", 0, codes.InvalidArgument, "is not spiffe://<trust domain>"},
		"no CSR":                     {"", testIdentity, 0, codes.InvalidArgument, "is not one PEM block"},
		"two CSRs":                   {good + good, testIdentity, 0, codes.InvalidArgument, "is not one PEM block"},
		"garbage in PEM":             {"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", testIdentity, 0, codes.InvalidArgument, "csr: "},
		"signed by another key":      {tampered(t, good), testIdentity, 0, codes.InvalidArgument, "csr: signature: "},
		"P-384":                      {mustCSR(t, mustKey(t, elliptic.P384()), csrFor(t, testIdentity)), testIdentity, 0, codes.InvalidArgument, "is not ECDSA P-256"},
		"RSA":                        {mustCSR(t, rsaKey, csrFor(t, testIdentity)), testIdentity, 0, codes.InvalidArgument, "is not ECDSA P-256 but RSA"},
		"two URIs":                   {mustCSR(t, key, csrFor(t, testIdentity, other)), testIdentity, 0, codes.InvalidArgument, "must have one URI"},
		"no URI":                     {mustCSR(t, key, csrFor(t)), testIdentity, 0, codes.InvalidArgument, "must have one URI"},
		"a DNS name beside":          {mustCSR(t, key, dns), testIdentity, 0, codes.InvalidArgument, "1 others"},
		"negative lifetime":          {good, testIdentity, -1, codes.InvalidArgument, "validity_duration: -1 is negative"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := p.createCertificate(certRequest(t, c.csr, c.identity, c.seconds))
			if status.Code(err) != c.code || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %v with %q", err, c.code, c.want)
			}
		})
	}
	if got := p.logs.count("certificate issued"); got != 0 {
		t.Errorf("%d certificates were issued, want none", got)
	}
}

// tampered flips a bit of a CSR's signature.
func tampered(t *testing.T, csr string) string {
	t.Helper()
	block, _ := pem.Decode([]byte(csr))
	block.Bytes[len(block.Bytes)-1] ^= 1
	return string(pem.EncodeToMemory(block))
}

func TestRootSurvivesARestart(t *testing.T) {
	p := newPlane(t, nil)
	read := func() string {
		t.Helper()
		data, err := os.ReadFile(filepath.Join(p.cfg.CADir, rootCertFile))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	before := read()
	st, err := os.Stat(filepath.Join(p.cfg.CADir, rootKeyFile))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("key: got mode %v, %v, want 0600", st.Mode(), err)
	}
	p.stop()
	p.start()
	if after := read(); after != before {
		t.Error("the root changed")
	}
	p.allow(testIdentity)
	answer, err := p.createCertificate(certRequest(t, mustCSR(t, mustKey(t, elliptic.P256()), csrFor(t, testIdentity)), testIdentity, 0))
	if err != nil || answer.CertChain[1] != before {
		t.Errorf("got %v, want a certificate of the root on disk", err)
	}
}

func TestAgentsThatShareAFolderShareTheRoot(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "shared", "ca")
	const agents = 8
	roots := make([]string, agents)
	var wg sync.WaitGroup
	for i := range agents {
		wg.Go(func() {
			r, err := openRoot(dir, defaultTrustDomain)
			if err != nil {
				t.Error(err)
				return
			}
			roots[i] = r.pem
		})
	}
	wg.Wait()
	if got := slices.Compact(roots); len(got) != 1 || got[0] == "" {
		t.Errorf("%d agents made %d roots, want 1", agents, len(got))
	}
}

// freshRoot is the folder of a new root.
func freshRoot(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ca") // made by openRoot: the umask may let the group into t.TempDir
	if _, err := openRoot(dir, defaultTrustDomain); err != nil {
		t.Fatal(err)
	}
	return dir
}

// What a crash between the two renames leaves, and what must not be taken for it.
func TestRootFolderHalfDone(t *testing.T) {
	t.Run("key without certificate", func(t *testing.T) {
		dir := freshRoot(t)
		key, err := os.ReadFile(filepath.Join(dir, rootKeyFile))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(dir, rootCertFile)); err != nil {
			t.Fatal(err)
		}
		if _, err := openRoot(dir, defaultTrustDomain); err != nil {
			t.Errorf("got %v, want a new certificate of the same key", err)
		}
		if after, err := os.ReadFile(filepath.Join(dir, rootKeyFile)); err != nil || string(after) != string(key) {
			t.Error("the key was replaced")
		}
	})
	for name, c := range map[string]struct {
		spoil func(dir string) error
		want  string
	}{
		"certificate without key": {func(dir string) error { return os.Remove(filepath.Join(dir, rootKeyFile)) }, "put the key back"},
		"key of another root": {func(dir string) error {
			_, err := createKey(filepath.Join(dir, rootKeyFile))
			return err
		}, "is not the certificate of root-key.pem"},
		"key that others can read": {func(dir string) error { return os.Chmod(filepath.Join(dir, rootKeyFile), 0o640) }, "others could read the mesh's root key"},
		"truncated key":            {func(dir string) error { return os.Truncate(filepath.Join(dir, rootKeyFile), 20) }, "holds no PEM block"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := freshRoot(t)
			if err := c.spoil(dir); err != nil {
				t.Fatal(err)
			}
			if _, err := openRoot(dir, defaultTrustDomain); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want one with %q", err, c.want)
			}
		})
	}
}

func TestRootThatOthersMayHaveMadeIsRefused(t *testing.T) {
	testutil.RequireRoot(t) // to give files away
	for name, c := range map[string]struct {
		spoil func(dir string) error
		want  string
	}{
		"key of another user":             {func(dir string) error { return os.Chown(filepath.Join(dir, rootKeyFile), 65534, -1) }, "belongs to user 65534, who knows the mesh's root key (chown root"},
		"folder that its group can write": {func(dir string) error { return os.Chmod(dir, 0o770) }, "has mode 0770: others could replace the mesh's root key (chmod go-w)"},
		"folder that all can write":       {func(dir string) error { return os.Chmod(dir, 0o1777) }, "others could replace the mesh's root key (chmod go-w)"},
		"folder of another user":          {func(dir string) error { return os.Chown(dir, 65534, -1) }, "belongs to user 65534, who could replace the mesh's root key (chown root)"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := freshRoot(t)
			if err := c.spoil(dir); err != nil {
				t.Fatal(err)
			}
			if _, err := openRoot(dir, defaultTrustDomain); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want one with %q", err, c.want)
			}
		})
	}
}
