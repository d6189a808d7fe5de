// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"github.com/sluice-mesh/sluice/installer/controlplane"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// trustDomains have a certificate authority each, under one root: the one the agents made.
var trustDomains = []string{"cluster.local", "elsewhere.example"}

func (w *world) caSocket(trustDomain string) string { return filepath.Join(w.Dir, trustDomain+".sock") }

// openCA serves certificates for whatever the scenarios have on a node; the agents' own vouch for enrolled pods only.
func (w *world) openCA() error {
	ctx, cancel := context.WithCancel(context.Background())
	var ends []chan error
	w.authorities = func() error {
		cancel()
		var errs []error
		for _, end := range ends {
			errs = append(errs, <-end)
		}
		return errors.Join(errs...)
	}
	empty := filepath.Join(w.Dir, "no-manifests")
	if err := os.MkdirAll(empty, 0o755); err != nil {
		return err
	}
	for _, domain := range trustDomains {
		server, err := controlplane.New(controlplane.Config{
			ManifestsDir: empty, WorkloadsDir: filepath.Join(empty, "workloads"), CADir: w.CA(), Socket: w.caSocket(domain),
			TrustDomain: domain, MayImpersonate: func(string) bool { return true }, Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			return err
		}
		end := make(chan error, 1)
		ends = append(ends, end)
		go func() { end <- server.Run(ctx) }()
		select {
		case <-server.Ready():
		case err := <-end:
			end <- nil
			return fmt.Errorf("certificate authority of %s: %w", domain, err)
		}
	}
	return w.loadRoot()
}

// loadRoot reads the mesh's root, for the peers that tests play themselves.
func (w *world) loadRoot() error {
	w.ca = &testutil.CA{}
	for name, parse := range map[string]func([]byte) error{
		"root-cert.pem": func(der []byte) (err error) {
			w.ca.Cert, err = x509.ParseCertificate(der)
			return err
		},
		"root-key.pem": func(der []byte) error {
			key, err := x509.ParsePKCS8PrivateKey(der)
			w.ca.Key, _ = key.(*ecdsa.PrivateKey)
			return err
		},
	} {
		text, err := os.ReadFile(filepath.Join(w.CA(), name))
		if err != nil {
			return err
		}
		block, _ := pem.Decode(text)
		if block == nil {
			return fmt.Errorf("%s is no PEM", name)
		}
		if err := parse(block.Bytes); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) crlPath(node int) string {
	return filepath.Join(w.Dir, "crl-"+w.Nodes[node].Name, "ca-crl.pem")
}

// revoke gives a node a list of exactly these certificates.
func (s *scene) revoke(node int, serials ...*big.Int) {
	s.t.Helper()
	s.crls++
	list := &x509.RevocationList{Number: big.NewInt(int64(s.crls)), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour)}
	for _, serial := range serials {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: serial, RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, s.ca.Cert, s.ca.Key)
	s.must(err)
	path := s.crlPath(node)
	s.must(os.MkdirAll(filepath.Dir(path), 0o755))
	s.must(os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}), 0o600))
}
