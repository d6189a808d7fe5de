// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// managerOf returns a manager whose CA is ca.
func managerOf(t *testing.T, ca *authority) *Manager {
	t.Helper()
	m := NewManager(Config{CA: ca})
	t.Cleanup(m.Close)
	return m
}

// shown is what one end of a handshake came to.
type shown struct {
	state tls.ConnectionState
	sni   string
	err   error
}

// handshake has a client and a server meet over real TCP. Both send a byte and read one, as a refusal of its certificate
// reaches a TLS 1.3 client only after its own handshake.
func handshake(t *testing.T, client, server *tls.Config) (c, s shown) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	deadline := time.Now().Add(10 * time.Second)
	done := make(chan shown, 1)
	go func() {
		raw, err := listener.Accept()
		if err != nil {
			done <- shown{err: err}
			return
		}
		done <- exchange(tls.Server(raw, server), deadline)
	}()
	raw, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c = exchange(tls.Client(raw, client), deadline)
	return c, <-done
}

func exchange(conn *tls.Conn, deadline time.Time) shown {
	defer conn.Close()
	conn.SetDeadline(deadline)
	err := conn.HandshakeContext(context.Background())
	if err == nil {
		_, err = conn.Write([]byte{1})
	}
	if err == nil {
		_, err = io.ReadFull(conn, make([]byte, 1))
	}
	return shown{state: conn.ConnectionState(), sni: conn.ConnectionState().ServerName, err: err}
}

func TestMutualTLS(t *testing.T) {
	ca := newAuthority(t)
	m := managerOf(t, ca)
	alice, bob := testID("alice"), testID("bob")
	client := ClientTLS(m, alice, []string{"spiffe://cluster.local/ns/shop/sa/other", bob.String()})
	server := ServerTLS(m, bob)
	for range 2 {
		c, s := handshake(t, client, server)
		if c.err != nil || s.err != nil {
			t.Fatalf("client: %v, server: %v", c.err, s.err)
		}
		if s.state.Version != tls.VersionTLS13 || s.state.NegotiatedProtocol != "h2" {
			t.Errorf("version %x, ALPN %q, want TLS 1.3 and h2", s.state.Version, s.state.NegotiatedProtocol)
		}
		if s.state.CipherSuite != tls.TLS_AES_128_GCM_SHA256 && s.state.CipherSuite != tls.TLS_AES_256_GCM_SHA384 {
			t.Errorf("suite %s, want AES-GCM", tls.CipherSuiteName(s.state.CipherSuite))
		}
		if s.state.CurveID != tls.X25519MLKEM768 {
			t.Errorf("key exchange %s, want X25519MLKEM768", s.state.CurveID)
		}
		if s.sni != "" {
			t.Errorf("client sent SNI %q, want none", s.sni)
		}
		if s.state.DidResume || c.state.DidResume {
			t.Error("session was resumed")
		}
		if id, ok := PeerIdentity(s.state); !ok || id != alice {
			t.Errorf("server sees %v, %v, want %v", id, ok, alice)
		}
		if id, ok := PeerIdentity(c.state); !ok || id != bob {
			t.Errorf("client sees %v, %v, want %v", id, ok, bob)
		}
		if n := len(c.state.PeerCertificates); n != 2 {
			t.Errorf("server sent %d certificates, want leaf and intermediate without the root", n)
		}
	}
}

// bare is a client that shows whatever certificates it is given and trusts anyone.
func bare(certs ...tls.Certificate) *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}, Certificates: certs}
}

// certFor has ca issue a certificate outside of any manager.
func certFor(t *testing.T, ca *authority, id Identity, edit func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	key := newKey(t)
	ca.edit = edit
	leaf, err := ca.leaf(id, &key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	ca.edit = nil
	certs, err := parsePEM(leaf + pemText(ca.intermediate))
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{certs[0].Raw, certs[1].Raw}, PrivateKey: key}
}

func expire(c *x509.Certificate) {
	c.NotBefore, c.NotAfter = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2020, 1, 2, 0, 0, 0, 0, time.UTC)
}

func usage(u x509.ExtKeyUsage) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{u} }
}

// TestServerRefuses: the bad input for CONNECT that TLS answers for, with the message of each.
func TestServerRefuses(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	alice := testID("alice")
	foreign := Identity{TrustDomain: "elsewhere.example", Namespace: "shop", ServiceAccount: "alice"}
	old := bare(certFor(t, ca, alice, nil))
	old.MaxVersion = tls.VersionTLS12
	mute := bare(certFor(t, ca, alice, nil))
	mute.NextProtos = nil
	http1 := bare(certFor(t, ca, alice, nil))
	http1.NextProtos = []string{"http/1.1"}
	for _, test := range []struct {
		name   string
		client *tls.Config
		is     func(error) bool
		want   string
	}{
		{"no certificate", bare(), isErr(ErrNoCertificate), "peer presented no certificate"},
		{"trust_domain_mismatch_rejected", bare(certFor(t, ca, foreign, nil)), asErr[*TrustDomainError],
			`trust domain mismatch: peer is spiffe://elsewhere.example/ns/shop/sa/alice, want trust domain "cluster.local"`},
		{"expired certificate", bare(certFor(t, ca, alice, expire)), asErr[*ExpiredError],
			"certificate of spiffe://cluster.local/ns/shop/sa/alice expired at 2020-01-02T00:00:00Z, it is "},
		{"signed by a stranger", bare(certFor(t, other, alice, nil)), asErr[*UntrustedError],
			"certificate of spiffe://cluster.local/ns/shop/sa/alice is not trusted: x509: certificate signed by unknown authority"},
		{"certificate for servers only", bare(certFor(t, ca, alice, usage(x509.ExtKeyUsageServerAuth))), asErr[*UntrustedError],
			"is not trusted: x509: certificate specifies an incompatible key usage"},
		{"certificate without an identity", bare(certFor(t, ca, alice, func(c *x509.Certificate) { c.URIs, c.DNSNames = nil, []string{"a"} })),
			asErr[*TrustDomainError], "trust domain mismatch: peer is nobody"},
		{"TLS 1.2", old, nil, "tls: client offered only unsupported versions"},
		{"no ALPN", mute, isErr(ErrNotH2), `peer did not negotiate ALPN "h2"`},
		{"another protocol", http1, isErr(ErrNotH2), `peer did not negotiate ALPN "h2"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, s := handshake(t, test.client, ServerTLS(managerOf(t, ca), testID("bob")))
			if s.err == nil || !strings.Contains(s.err.Error(), test.want) || (test.is != nil && !test.is(s.err)) {
				t.Errorf("server: %v (%T), want %q", s.err, s.err, test.want)
			}
			if c.err == nil {
				t.Error("client got through")
			}
		})
	}
}

func isErr(want error) func(error) bool { return func(err error) bool { return errors.Is(err, want) } }

func asErr[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

func TestServerTakesCertificateWithoutUsages(t *testing.T) {
	ca := newAuthority(t)
	client := bare(certFor(t, ca, testID("alice"), func(c *x509.Certificate) { c.ExtKeyUsage = nil }))
	if c, s := handshake(t, client, ServerTLS(managerOf(t, ca), testID("bob"))); c.err != nil || s.err != nil {
		t.Errorf("client: %v, server: %v", c.err, s.err)
	}
}

// TestClientRefuses: what a client says about the server it reached.
func TestClientRefuses(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	bob := testID("bob")
	serve := func(cert tls.Certificate, protocols ...string) *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: protocols, ClientAuth: tls.RequestClientCert}
	}
	tls12 := serve(certFor(t, ca, bob, nil), "h2")
	tls12.MaxVersion = tls.VersionTLS12
	for _, test := range []struct {
		name     string
		server   *tls.Config
		expected []string
		is       func(error) bool
		want     string
	}{
		{"unexpected identity", serve(certFor(t, ca, testID("mallory"), nil), "h2"), []string{bob.String()}, asErr[*UnexpectedError],
			"unexpected identity: got spiffe://cluster.local/ns/shop/sa/mallory, want spiffe://cluster.local/ns/shop/sa/bob"},
		{"nobody expected", serve(certFor(t, ca, bob, nil), "h2"), nil, asErr[*UnexpectedError],
			"unexpected identity: got spiffe://cluster.local/ns/shop/sa/bob, want nobody"},
		{"expired", serve(certFor(t, ca, bob, expire), "h2"), []string{bob.String()}, asErr[*ExpiredError],
			"certificate of spiffe://cluster.local/ns/shop/sa/bob expired at 2020-01-02T00:00:00Z"},
		{"signed by a stranger", serve(certFor(t, other, bob, nil), "h2"), []string{bob.String()}, asErr[*UntrustedError], "signed by unknown authority"},
		{"certificate for clients only", serve(certFor(t, ca, bob, usage(x509.ExtKeyUsageClientAuth)), "h2"), []string{bob.String()}, asErr[*UntrustedError], "incompatible key usage"},
		{"no ALPN", serve(certFor(t, ca, bob, nil)), []string{bob.String()}, isErr(ErrNotH2), `peer did not negotiate ALPN "h2"`},
		{"TLS 1.2", tls12, []string{bob.String()}, nil, "protocol version not supported"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, s := handshake(t, ClientTLS(managerOf(t, ca), testID("alice"), test.expected), test.server)
			if c.err == nil || !strings.Contains(c.err.Error(), test.want) || (test.is != nil && !test.is(c.err)) {
				t.Errorf("client: %v (%T), want %q", c.err, c.err, test.want)
			}
			if s.err == nil {
				t.Error("server got through")
			}
		})
	}
}

func TestExpectedMayBeAnyName(t *testing.T) {
	ca := newAuthority(t)
	server := ServerTLS(managerOf(t, ca), testID("bob"))
	names := []string{"spiffe://cluster.local/ns/shop/sa/x", testID("bob").String()}
	if c, s := handshake(t, ClientTLS(managerOf(t, ca), testID("alice"), names), server); c.err != nil || s.err != nil {
		t.Errorf("client: %v, server: %v", c.err, s.err)
	}
}

func TestHandshakeFailsWithoutOwnCertificate(t *testing.T) {
	ca := newAuthority(t)
	broken := newAuthority(t)
	broken.fail = errRefused
	good, bad := managerOf(t, ca), managerOf(t, broken)
	alice, bob := testID("alice"), testID("bob")
	_, s := handshake(t, ClientTLS(good, alice, []string{bob.String()}), ServerTLS(bad, bob))
	c, _ := handshake(t, ClientTLS(bad, alice, []string{bob.String()}), ServerTLS(good, bob))
	for side, err := range map[string]error{"server": s.err, "client": c.err} {
		if !asErr[*UnavailableError](err) || !errors.Is(err, errRefused) {
			t.Errorf("%s: %v (%T), want *UnavailableError", side, err, err)
		}
	}
}

// TestRotationNeedsNoNewConfig: the CA moves to a new root; both configurations made before go on working.
func TestRotationNeedsNoNewConfig(t *testing.T) {
	first, second := newAuthority(t), newAuthority(t)
	ca := &switchable{authority: first}
	m := NewManager(Config{CA: ca})
	defer m.Close()
	alice, bob := testID("alice"), testID("bob")
	client, server := ClientTLS(m, alice, []string{bob.String()}), ServerTLS(m, bob)
	for _, now := range []*authority{first, second} {
		ca.authority = now
		m.Hold(alice)
		m.Hold(bob)
		c, s := handshake(t, client, server)
		if c.err != nil || s.err != nil {
			t.Fatalf("client: %v, server: %v", c.err, s.err)
		}
		if err := c.state.PeerCertificates[0].CheckSignatureFrom(now.intermediate); err != nil {
			t.Errorf("server's certificate is not of the present CA: %v", err)
		}
		m.Release(alice)
		m.Release(bob)
	}
}

type switchable struct{ *authority }

func TestPeerIdentityTakesTheFirstThatParses(t *testing.T) {
	ca := newAuthority(t)
	cert := certFor(t, ca, testID("alice"), func(c *x509.Certificate) {
		odd := *c.URIs[0]
		odd.Path = "/something/else"
		c.URIs = append(c.URIs[:0:0], &odd, c.URIs[0])
	})
	c, s := handshake(t, bare(cert), ServerTLS(managerOf(t, ca), testID("bob")))
	if c.err != nil || s.err != nil {
		t.Fatalf("client: %v, server: %v", c.err, s.err)
	}
	if id, ok := PeerIdentity(s.state); !ok || id != testID("alice") {
		t.Errorf("got %v, %v, want alice", id, ok)
	}
	if id, ok := PeerIdentity(tls.ConnectionState{}); ok {
		t.Errorf("nobody is %v", id)
	}
}

func BenchmarkHandshake(b *testing.B) {
	ca := newAuthority(b)
	m := NewManager(Config{CA: ca})
	defer m.Close()
	alice, bob := testID("alice"), testID("bob")
	client, server := ClientTLS(m, alice, []string{bob.String()}), ServerTLS(m, bob)
	for b.Loop() {
		here, there := net.Pipe()
		done := make(chan error, 1)
		go func() { done <- tls.Server(there, server).Handshake() }()
		if err := errors.Join(tls.Client(here, client).Handshake(), <-done); err != nil {
			b.Fatal(fmt.Errorf("handshake: %w", err))
		}
		here.Close()
		there.Close()
	}
}
