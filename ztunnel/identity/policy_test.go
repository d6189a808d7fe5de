// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"crypto/tls"
	"os"
	"os/exec"
	"strings"
	"testing"
)

func TestParseTLSPolicy(t *testing.T) {
	for _, test := range []struct {
		compliance string
		tls12      bool
		want       TLSPolicy
	}{
		{"", false, TLSPolicy{}},
		{"", true, TLSPolicy{TLS12: true}},
		{"pqc", false, TLSPolicy{PostQuantum: true}},
		{"pqc", true, TLSPolicy{TLS12: true, PostQuantum: true}},
	} {
		if got, err := ParseTLSPolicy(test.compliance, test.tls12); err != nil || got != test.want {
			t.Errorf("ParseTLSPolicy(%q, %v) = %+v, %v, want %+v", test.compliance, test.tls12, got, err, test.want)
		}
	}
	_, err := ParseTLSPolicy("fips-140-2", false)
	if want := `compliance policy "fips-140-2": want "pqc", or "" for none`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// TestPolicyMeetsPeer: what a foreign peer that speaks only so much gets from both of our ends.
func TestPolicyMeetsPeer(t *testing.T) {
	only12 := func(suite uint16) func(*tls.Config) {
		return func(c *tls.Config) { c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{suite} }
	}
	group := func(g tls.CurveID) func(*tls.Config) {
		return func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{g} }
	}
	classic := TLSPolicy{}
	old, quantum, both := TLSPolicy{TLS12: true}, TLSPolicy{PostQuantum: true}, TLSPolicy{TLS12: true, PostQuantum: true}
	aes256, aes128 := tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
	for _, test := range []struct {
		name   string
		policy TLSPolicy
		peer   func(*tls.Config)
		want   bool
	}{
		{"X25519", classic, group(tls.X25519), true},
		{"P-256", classic, group(tls.CurveP256), true},
		{"P-384", classic, group(tls.CurveP384), true},
		{"X25519MLKEM768", classic, group(tls.X25519MLKEM768), true},
		{"P-521", classic, group(tls.CurveP521), false},
		{"TLS 1.2", classic, only12(aes256), false},
		{"TLS 1.2 enabled, AES-256-GCM", old, only12(aes256), true},
		{"TLS 1.2 enabled, AES-128-GCM", old, only12(aes128), true},
		{"TLS 1.2 enabled, ChaCha20", old, only12(tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256), false},
		{"TLS 1.2 enabled, CBC", old, only12(tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA), false},
		{"pqc, X25519MLKEM768", quantum, group(tls.X25519MLKEM768), true},
		{"pqc, X25519", quantum, group(tls.X25519), false},
		{"pqc, P-256", quantum, group(tls.CurveP256), false},
		{"pqc, TLS 1.2", both, only12(aes128), false},
	} {
		t.Run(test.name, func(t *testing.T) { testPolicyMeetsPeer(t, test.policy, test.peer, test.want) })
	}
}

func testPolicyMeetsPeer(t *testing.T, policy TLSPolicy, edit func(*tls.Config), want bool) {
	ca := newAuthority(t)
	m := NewManager(Config{CA: ca, TLS: policy})
	defer m.Close()
	peer := foreign(certFor(t, ca, testID("peer"), nil))
	edit(peer)
	c, s := handshake(t, peer, ServerTLS(m, testID("bob")))
	if got := c.err == nil && s.err == nil; got != want {
		t.Errorf("our server: connected %v, want %v (client: %v, server: %v)", got, want, c.err, s.err)
	}
	c, s = handshake(t, ClientTLS(m, testID("alice"), []string{testID("peer").String()}), peer)
	if got := c.err == nil && s.err == nil; got != want {
		t.Errorf("our client: connected %v, want %v (client: %v, server: %v)", got, want, c.err, s.err)
	}
}

// foreign is either end of a peer that is not ours.
func foreign(cert tls.Certificate) *tls.Config {
	cfg := bare(cert)
	cfg.ClientAuth = tls.RequestClientCert
	return cfg
}

// TestChaCha20IsRefused runs itself in a process that believes to have no AES instructions, as Go takes ChaCha20 there.
func TestChaCha20IsRefused(t *testing.T) {
	const child = "SLUICE_TEST_WITHOUT_AES"
	if os.Getenv(child) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestChaCha20IsRefused$", "-test.v")
		cmd.Env = append(os.Environ(), child+"=1", "GODEBUG=cpu.aes=off")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS: TestChaCha20IsRefused") {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	ca := newAuthority(t)
	m := managerOf(t, ca)
	peer := foreign(certFor(t, ca, testID("peer"), nil))
	if c, _ := handshake(t, peer, peer); c.err != nil || c.state.CipherSuite != tls.TLS_CHACHA20_POLY1305_SHA256 {
		t.Fatalf("strangers among themselves: %s, %v, want ChaCha20", tls.CipherSuiteName(c.state.CipherSuite), c.err)
	}
	_, s := handshake(t, peer, ServerTLS(m, testID("bob")))
	c, _ := handshake(t, ClientTLS(m, testID("alice"), []string{testID("peer").String()}), peer)
	for side, err := range map[string]error{"server": s.err, "client": c.err} {
		if !asErr[*SuiteError](err) {
			t.Errorf("%s: %v (%T), want *SuiteError", side, err, err)
		}
	}
}

// TestRootThatTheCARepeatsIsNotSent: leaf and intermediates are what peers get, whatever the CA's chain holds besides.
func TestRootThatTheCARepeatsIsNotSent(t *testing.T) {
	ca := newAuthority(t)
	ca.chain = func(chain []string) []string { return []string{chain[0], chain[1] + chain[2], chain[2]} }
	m := managerOf(t, ca)
	c, s := handshake(t, ClientTLS(m, testID("alice"), []string{testID("bob").String()}), ServerTLS(m, testID("bob")))
	if c.err != nil || s.err != nil || len(c.state.PeerCertificates) != 2 || len(s.state.PeerCertificates) != 2 {
		t.Errorf("client: %v, server: %v; certificates %d and %d, want 2 each",
			c.err, s.err, len(c.state.PeerCertificates), len(s.state.PeerCertificates))
	}
}
