// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/sluice-mesh/sluice/internal/lab"
	"github.com/sluice-mesh/sluice/internal/testutil"
	"github.com/sluice-mesh/sluice/ztunnel/hbone"
)

func TestManifestThatDoesNotParse(t *testing.T) {
	m := newMesh(t)
	m.write("strict.yaml", strict)
	stranger := m.addPod(0, "stranger", "plain")
	refused := func() error {
		if err := reaches(stranger, m.server, 4); err == nil {
			return fmt.Errorf("the stranger still gets through")
		}
		return nil
	}
	testutil.Eventually(t, effect, refused)
	for _, tt := range []struct{ name, content, line, reason string }{
		{"broken YAML", strict + "    mode: [\n", "strict.yaml:9", "yaml"},
		{"unknown kind", strict + "---\napiVersion: v1\nkind: Wish\nmetadata: {name: x}\n", "strict.yaml:11", "Wish"},
		{"unknown field", strings.Replace(strict, "mode:", "mood:", 1), "strict.yaml:8", "mood"},
	} {
		m.write("strict.yaml", tt.content)
		m.wantLog("agent-node2", tt.line, tt.reason)
		if err := refused(); err != nil {
			t.Errorf("%s: the last good state is gone: %v", tt.name, err)
		}
		m.wantReach(tt.name)
	}
	m.must(m.Remove("strict.yaml"))
	testutil.Eventually(t, effect, func() error { return reaches(stranger, m.server, 4) })
}

const strict = `apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: strict
  namespace: mesh
spec:
  mtls:
    mode: STRICT
`

func TestConflistMistakesFailAddAndName(t *testing.T) {
	m := newMesh(t)
	n := m.Nodes[0]
	good, err := os.ReadFile(n.ConflistPath())
	m.must(err)
	for i, tt := range []struct{ name, from, to, want string }{
		{"unknown key", `"agentSocket"`, `"agentsocket": "/x", "agentSocket"`, `unknown key "agentsocket" (did you mean "agentSocket"?)`},
		{"wrong type", `"type": "sluice-cni"`, `"type": "sluice-cni", "excludeNamespaces": "kube-system"`, "excludeNamespaces: want an array of strings"},
		{"relative path", `"stateDir": "/`, `"stateDir": "`, "is not an absolute path"},
	} {
		bad := strings.Replace(spaced(string(good)), tt.from, tt.to, 1)
		m.must(os.WriteFile(n.ConflistPath(), []byte(bad), 0o644))
		_, err := n.AddPod(lab.PodSpec{Name: fmt.Sprintf("bad%d", i), Namespace: "mesh"})
		t.Run(tt.name, func(t *testing.T) { wantCode(t, err, types.ErrInvalidNetworkConfig, tt.want) })
	}
	m.must(os.WriteFile(n.ConflistPath(), good, 0o644))
	if err := reaches(m.addPod(0, "good", "mesh"), m.server, 4); err != nil {
		t.Errorf("after the file was mended: %v", err)
	}
}

// spaced writes our entry, which is on one line, as the cases above look for it.
func spaced(conflist string) string { return strings.ReplaceAll(conflist, `":"`, `": "`) }

func TestAddAgainstAnAgentSocketThatIsNone(t *testing.T) {
	m := newMesh(t)
	n := m.Nodes[0]
	m.must(n.Agent.Kill())
	m.must(os.Remove(n.AgentSocket()))
	add := func(name string) error {
		_, err := n.AddPod(lab.PodSpec{Name: name, Namespace: "mesh"})
		return err
	}
	t.Run("missing", func(t *testing.T) {
		wantCode(t, add("early0"), types.ErrTryAgainLater, "no such socket")
	})
	t.Run("a file", func(t *testing.T) {
		m.must(os.WriteFile(n.AgentSocket(), nil, 0o600))
		defer os.Remove(n.AgentSocket())
		wantCode(t, add("early1"), types.ErrTryAgainLater, "not a socket but a file; remove it")
	})
	for i, tt := range []struct{ name, answer, want string }{
		{"one that hangs", "", "no answer in time"},
		{"one that answers garbage", "220 smtp ready", "what answers there is not the agent"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, err := net.Listen("unixpacket", n.AgentSocket())
			m.must(err)
			defer l.Close()
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					if tt.answer != "" {
						fmt.Fprint(c, tt.answer)
					}
					t.Cleanup(func() { c.Close() })
				}
			}()
			wantCode(t, add(fmt.Sprintf("early%d", 2+i)), types.ErrTryAgainLater, tt.want)
		})
	}
}

// attacker dials the server's HBONE port from a pod outside the mesh, with whatever certificate it likes.
type attacker struct {
	*mesh
	pod *lab.Pod
	ca  *testutil.CA // the mesh's own
}

func newAttacker(t *testing.T) *attacker {
	t.Helper()
	m := newMesh(t)
	a := &attacker{mesh: m, pod: m.addPod(0, "stranger", "plain"), ca: &testutil.CA{}}
	block := func(name string) []byte {
		data, err := os.ReadFile(filepath.Join(m.CA(), name))
		m.must(err)
		b, _ := pem.Decode(data)
		return b.Bytes
	}
	var err error
	a.ca.Cert, err = x509.ParseCertificate(block("root-cert.pem"))
	m.must(err)
	key, err := x509.ParsePKCS8PrivateKey(block("root-key.pem"))
	m.must(err)
	a.ca.Key = key.(*ecdsa.PrivateKey)
	return a
}

// connect sends one CONNECT to the server's pod and returns the status.
func (a *attacker) connect(authority string, certs ...tls.Certificate) (int, error) {
	pool := hbone.NewPool(hbone.PoolConfig{})
	ctx, cancel := context.WithTimeout(a.t.Context(), effect)
	defer cancel()
	defer pool.Close(ctx)
	dial := func(ctx context.Context) (net.Conn, error) {
		return inside(a.pod).Dial(ctx, "tcp", a.hboneAddr())
	}
	// Whom it talks to, an attacker does not mind.
	stream, _, err := pool.Connect(ctx, hbone.Key{}, dial, &tls.Config{Certificates: certs, InsecureSkipVerify: true}, hbone.ConnectRequest{Authority: authority})
	var refused *hbone.StatusError
	switch {
	case errors.As(err, &refused):
		return refused.Code, nil
	case err != nil:
		return 0, err
	}
	return http.StatusOK, stream.Close()
}

func (a *attacker) hboneAddr() string { return netip.AddrPortFrom(a.server.Addr4, 15008).String() }

func TestHBONEWithBadCertificate(t *testing.T) {
	a := newAttacker(t)
	target := echoOf(a.server, 4).String()
	const intruder = "spiffe://cluster.local/ns/plain/sa/stranger"
	if status, err := a.connect(target, a.ca.Issue(t, intruder)); status != http.StatusOK {
		t.Fatalf("a good certificate: got %d, %v", status, err)
	}
	for _, tt := range []struct {
		name  string
		certs []tls.Certificate
		log   []string
	}{
		{"no certificate", nil, []string{"certificate"}},
		{"another root", []tls.Certificate{testutil.NewCA(t).Issue(t, intruder)}, []string{"unknown authority"}},
		{"another trust domain", []tls.Certificate{a.ca.Issue(t, "spiffe://elsewhere/ns/plain/sa/stranger")}, []string{"trust domain", "elsewhere"}},
		{"expired", []tls.Certificate{a.ca.Issue(t, intruder, testutil.Expired)}, []string{"expired"}},
		{"no SPIFFE name", []tls.Certificate{a.ca.Issue(t, "https://example.com/")}, []string{"example.com"}},
	} {
		if status, err := a.connect(target, tt.certs...); err == nil {
			t.Errorf("%s: got status %d, want no connection", tt.name, status)
		}
		a.wantLog("ztunnel-node2", append([]string{a.pod.Addr4.String()}, tt.log...)...)
	}
	a.wantReach("after all of them")
}

func TestHBONEWithBadAuthority(t *testing.T) {
	a := newAttacker(t)
	cert := a.ca.Issue(t, "spiffe://cluster.local/ns/plain/sa/stranger")
	server := a.server.Addr4.String()
	for _, tt := range []struct {
		authority string
		want      int
	}{
		{a.client.Addr4.String() + ":7000", http.StatusBadRequest},
		{"127.0.0.1:7000", http.StatusBadRequest},
		{server, http.StatusBadRequest},
		{server + ":0", http.StatusBadRequest},
		{server + ":70000", http.StatusBadRequest},
		{server + ":15008", http.StatusServiceUnavailable},
		{server + ":15006", http.StatusServiceUnavailable},
		{"nobody.mesh.svc.cluster.local:80", http.StatusServiceUnavailable},
		{server + ":9", http.StatusServiceUnavailable}, // nobody listens
	} {
		got, err := a.connect(tt.authority, cert)
		if err != nil || got != tt.want {
			t.Errorf("CONNECT %s: got %d, %v, want %d", tt.authority, got, err, tt.want)
		}
	}
	a.wantReach("after all of them")
}

func TestHBONEPortSpeaksNothingElse(t *testing.T) {
	a := newAttacker(t)
	ctx, cancel := context.WithTimeout(t.Context(), effect)
	defer cancel()
	c, err := inside(a.pod).Dial(ctx, "tcp", a.hboneAddr())
	a.must(err)
	defer c.Close()
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	var got bytes.Buffer
	_, _ = got.ReadFrom(c)
	if strings.Contains(got.String(), "HTTP") || strings.Contains(got.String(), "server") {
		t.Errorf("got %q, want no word", got.String())
	}
	a.wantLog("ztunnel-node2", a.pod.Addr4.String(), "TLS")
}
