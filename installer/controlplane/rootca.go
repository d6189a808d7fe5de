// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/atomicfile"
)

// Files of the CA's folder.
const (
	rootKeyFile  = "root-key.pem"
	rootCertFile = "root-cert.pem"
	lockFile     = ".lock"
)

// rootLifetime is that of istiod's own root.
const rootLifetime = 10 * 365 * 24 * time.Hour

// root is the key that signs, and the certificate that peers trust.
type root struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pem  string
}

// openRoot loads the root from dir, or makes it if dir has none.
//
// Several agents may share dir: a lock makes one of them the creator. The key is written before the certificate, each by
// rename, so a crash leaves nothing, a key that the next call makes a certificate for, or both.
func openRoot(dir, trustDomain string) (*root, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	if err := checkFolder(dir); err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	unlock, err := lock(filepath.Join(dir, lockFile))
	if err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	defer unlock()
	r, err := loadOrCreate(dir, trustDomain)
	if err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	return r, nil
}

// lock waits for an exclusive lock, which the kernel gives back if the process dies.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %q: %w", path, err), f.Close())
	}
	return func() { _ = f.Close() }, nil
}

func loadOrCreate(dir, trustDomain string) (*root, error) {
	keyPath, certPath := filepath.Join(dir, rootKeyFile), filepath.Join(dir, rootCertFile)
	key, err := loadKey(keyPath)
	if errors.Is(err, os.ErrNotExist) {
		if _, err := os.Stat(certPath); err == nil {
			return nil, fmt.Errorf("%q is there but its key %q is not: put the key back, or remove the certificate to start a new mesh root", certPath, keyPath)
		}
		key, err = createKey(keyPath)
	}
	if err != nil {
		return nil, err
	}
	cert, err := loadCert(certPath)
	if errors.Is(err, os.ErrNotExist) {
		cert, err = createCert(certPath, key, trustDomain)
	}
	if err != nil {
		return nil, err
	}
	r := &root{key: key, cert: cert, pem: certPEM(cert.Raw)}
	return r, r.check(certPath)
}

// check refuses a pair with which nobody could verify anything.
func (r *root) check(path string) error {
	pub, ok := r.cert.PublicKey.(*ecdsa.PublicKey)
	switch {
	case !ok || !pub.Equal(&r.key.PublicKey):
		return fmt.Errorf("%q is not the certificate of %s", path, rootKeyFile)
	case !r.cert.IsCA:
		return fmt.Errorf("%q is no CA certificate", path)
	case time.Now().After(r.cert.NotAfter):
		return fmt.Errorf("%q expired at %s", path, r.cert.NotAfter.Format(time.RFC3339))
	}
	return nil
}

func createKey(path string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, atomicfile.Write(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}

func loadCert(path string) (*x509.Certificate, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	block, err := readPEM(f)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", path, err)
	}
	return cert, nil
}

func readPEM(f *os.File) (*pem.Block, error) {
	data, err := io.ReadAll(f)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%q holds no PEM block", f.Name())
	}
	return block, nil
}

func createCert(path string, key *ecdsa.PrivateKey, trustDomain string) (*x509.Certificate, error) {
	der, err := selfSign(key, trustDomain)
	if err != nil {
		return nil, err
	}
	if err := atomicfile.Write(path, []byte(certPEM(der)), 0o644); err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// selfSign returns the root's certificate as DER.
func selfSign(key *ecdsa.PrivateKey, trustDomain string) ([]byte, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{trustDomain}, CommonName: "Sluice mesh root"},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(rootLifetime),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true, // it signs workloads, no further CAs
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	return x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
}

func certPEM(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// newSerial is a random number of 127 bits: positive, and not to be guessed.
func newSerial() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
}
