// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Offsets from a server's port to the haproxy's in front of it: in the client's pod, and on the wire.
const (
	haproxyIn   = 10000
	haproxyWire = 20000
)

const haproxyConf = `global
    maxconn %[1]d
    ssl-default-bind-options ssl-min-ver TLSv1.3
    ssl-default-server-options ssl-min-ver TLSv1.3
    ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256
    ssl-default-server-ciphersuites TLS_AES_128_GCM_SHA256
    tune.ssl.cachesize 100000
defaults
    mode tcp
    timeout connect 5s
    timeout client 10m
    timeout server 10m
    maxconn %[1]d
`

// startHaproxies puts a haproxy into each plain pod: TCP to TLS 1.3 in the client's, TLS to TCP in the server's, both
// with certificates of one CA, as sidecars would be. That spares them the way to a proxy outside the pod.
func (b *bench) startHaproxies() error {
	home := filepath.Join(b.Dir, "haproxy")
	if err := os.MkdirAll(home, 0o755); err != nil {
		return err
	}
	if err := writeCertificates(home); err != nil {
		return err
	}
	base := fmt.Sprintf(haproxyConf, (b.files-500)/2)
	client, server := base, base
	for _, port := range []int{httpPort, iperfPort, idlePort} {
		client += fmt.Sprintf("listen c%[1]d\n    bind 127.0.0.1:%[2]d\n    server s %[3]s:%[4]d ssl crt %[5]s/client.pem ca-file %[5]s/ca.pem verify required verifyhost server\n",
			port, haproxyIn+port, b.pserver.Addr4, haproxyWire+port, home)
		server += fmt.Sprintf("listen s%[1]d\n    bind :%[2]d ssl crt %[3]s/server.pem ca-file %[3]s/ca.pem verify required\n    server s 127.0.0.1:%[1]d\n",
			port, haproxyWire+port, home)
	}
	for _, p := range []struct {
		name, ns, conf string
		port           int
	}{{"haproxy-server", b.pserver.NS, server, haproxyWire}, {"haproxy-client", b.pclient.NS, client, haproxyIn}} {
		path := filepath.Join(home, p.name+".cfg")
		if err := os.WriteFile(path, []byte(p.conf), 0o644); err != nil {
			return err
		}
		if _, err := b.Start(p.ns, p.name, sbin("haproxy"), "-db", "-f", path); err != nil {
			return err
		}
		if err := b.waitListening(p.ns, p.port+httpPort, p.port+iperfPort); err != nil {
			return err
		}
	}
	return nil
}

// writeCertificates makes a CA and a P-256 certificate for each haproxy, as the mesh uses.
func writeCertificates(dir string) error {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	ca := template("bench")
	ca.IsCA, ca.BasicConstraintsValid, ca.KeyUsage = true, true, x509.KeyUsageCertSign
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.pem"), pemOf("CERTIFICATE", caDER), 0o600); err != nil {
		return err
	}
	for _, name := range []string{"client", "server"} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return err
		}
		leaf := template(name)
		leaf.DNSNames = []string{name}
		der, err := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, caKey)
		if err != nil {
			return err
		}
		keyDER, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return err
		}
		both := append(pemOf("CERTIFICATE", der), pemOf("PRIVATE KEY", keyDER)...)
		if err := os.WriteFile(filepath.Join(dir, name+".pem"), both, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func template(name string) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<62))
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// haproxyVersion is the first line of haproxy -v.
func haproxyVersion(b *bench) string {
	out, _ := b.Output(b.pclient.NS, 5*time.Second, sbin("haproxy"), "-v")
	first, _, _ := strings.Cut(out, "\n")
	fields := strings.Fields(first)
	if len(fields) < 3 {
		return "haproxy"
	}
	return "haproxy " + fields[2]
}
