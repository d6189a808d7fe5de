// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/sluice-mesh/sluice/internal/unixsock"
)

// servingLifetime is how long a certificate of the server's own is good for; it is made anew at half of that.
const servingLifetime = 24 * time.Hour

// connectionAge is that of istiod's streams.
const connectionAge = 30 * time.Minute

// Remote is what it takes to serve ztunnels of other nodes: TLS, and callers who prove who they are.
type Remote struct {
	// Listener accepts the connections. The server closes it.
	Listener net.Listener
	// Root signs identities, and the server's own certificate for Names.
	Root RootPEM
	// Names are the DNS names that clients may know the server by.
	Names []string
	// Admit tells which node a caller's bearer token is of. Its errors are sent to the caller as they are; those of
	// package status keep their code.
	Admit func(ctx context.Context, token string) (node string, err error)
	// MayImpersonate returns why a node's ztunnel may not have a certificate for a SPIFFE URI, or nil if it may.
	MayImpersonate func(node, identity string) error
}

// RootPEM is the mesh's root: a PKCS #8 key and its certificate, behind which there may be others that peers are to trust,
// too.
type RootPEM struct{ Key, Cert []byte }

// NewRootPEM makes a root.
func NewRootPEM(trustDomain string) (RootPEM, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return RootPEM{}, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return RootPEM{}, err
	}
	cert, err := selfSign(key, trustDomain)
	if err != nil {
		return RootPEM{}, err
	}
	return RootPEM{Key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), Cert: []byte(certPEM(cert))}, nil
}

// Validate tells what is wrong with a root that is not this package's own.
func (p RootPEM) Validate() error { _, err := p.parse(); return err }

func (p RootPEM) parse() (*root, error) {
	kb, _ := pem.Decode(p.Key)
	cb, more := pem.Decode(p.Cert)
	if kb == nil || cb == nil {
		return nil, errors.New("root: key or certificate is no PEM")
	}
	key, err := parseKey(kb.Bytes)
	if err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	cert, err := x509.ParseCertificate(cb.Bytes)
	if err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	r := &root{key: key, cert: cert, pem: certPEM(cert.Raw)}
	if err := r.check("root certificate"); err != nil {
		return nil, err
	}
	return r, r.trust(more)
}

// trust adds certificates, as PEM, that peers are to trust beside the root's own: while the root is changed for another.
func (r *root) trust(text []byte) error {
	for n := 2; ; n++ {
		block, rest := pem.Decode(text)
		if block == nil {
			if len(bytes.TrimSpace(text)) > 0 {
				return fmt.Errorf("root: certificate %d is no PEM", n)
			}
			return nil
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return fmt.Errorf("root: certificate %d: %w", n, err)
		}
		if !cert.IsCA {
			return fmt.Errorf("root: certificate %d is no CA certificate", n)
		}
		r.pem += certPEM(cert.Raw)
		text = rest
	}
}

func (r *Remote) complete() error {
	if r.Listener == nil || r.Admit == nil || r.MayImpersonate == nil || len(r.Names) == 0 {
		return errors.New("Remote: Listener, Names, Admit and MayImpersonate are all needed")
	}
	return nil
}

// authority is the root, and who may have what of it.
func (c *Config) authority() (*root, func(context.Context, string) error, error) {
	if c.Remote == nil {
		key, err := openRoot(c.CADir, c.TrustDomain)
		return key, func(_ context.Context, identity string) error {
			if c.MayImpersonate(identity) {
				return nil
			}
			return errors.New("no enrolled pod of this node has this identity")
		}, err
	}
	key, err := c.Remote.Root.parse()
	return key, func(ctx context.Context, identity string) error {
		node, ok := callerNode(ctx)
		if !ok {
			return errors.New("it is not known who asks")
		}
		return c.Remote.MayImpersonate(node, identity)
	}, err
}

// listen opens what Run serves on.
func (s *Server) listen() (net.Listener, []grpc.ServerOption, error) {
	r := s.cfg.Remote
	if r == nil {
		l, err := unixsock.Listen("unix", s.cfg.Socket, s.log)
		return l, nil, err
	}
	own := &servingCert{root: s.ca.root, names: r.Names}
	if _, err := own.get(nil); err != nil {
		return nil, nil, err
	}
	return r.Listener, []grpc.ServerOption{
		grpc.Creds(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: own.get})),
		// Whoever stays for long proves anew who he is; ztunnels hold what they have until they are back.
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: connectionAge, MaxConnectionAgeGrace: 10 * time.Second}),
		grpc.UnaryInterceptor(s.admitUnary), grpc.StreamInterceptor(s.admitStream),
	}, nil
}

// servingCert is the server's own certificate, signed by the mesh's root. Safe for concurrent use.
type servingCert struct {
	root  *root
	names []string

	mu      sync.Mutex
	current *tls.Certificate
	renew   time.Time
}

func (c *servingCert) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current != nil && time.Now().Before(c.renew) {
		return c.current, nil
	}
	cert, err := c.issue()
	if err != nil {
		return nil, fmt.Errorf("certificate of the control plane: %w", err)
	}
	c.current, c.renew = cert, time.Now().Add(servingLifetime/2)
	return cert, nil
}

func (c *servingCert) issue() (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "Sluice control plane"}, DNSNames: c.names,
		NotBefore: time.Now().Add(-clockSkew), NotAfter: time.Now().Add(servingLifetime),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, c.root.cert, &key.PublicKey, c.root.key)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
