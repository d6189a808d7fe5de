// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	securityv1alpha1 "istio.io/api/security/v1alpha1"
)

// certificateService is Istio's CA service in front of an authority; it records what it was sent.
type certificateService struct {
	securityv1alpha1.UnimplementedIstioCertificateServiceServer
	ca *authority

	mu      sync.Mutex
	headers []metadata.MD
	last    *securityv1alpha1.IstioCertificateRequest
}

func (s *certificateService) CreateCertificate(ctx context.Context, r *securityv1alpha1.IstioCertificateRequest) (*securityv1alpha1.IstioCertificateResponse, error) {
	headers, _ := metadata.FromIncomingContext(ctx)
	s.mu.Lock()
	s.headers, s.last = append(s.headers, headers), r
	s.mu.Unlock()
	id, err := ParseIdentity(r.GetMetadata().GetFields()["ImpersonatedIdentity"].GetStringValue())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	chain, err := s.ca.Sign(ctx, id, r.GetCsr())
	if err != nil {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	return &securityv1alpha1.IstioCertificateResponse{CertChain: chain}, nil
}

// serveCA runs the service on a listener until the test ends.
func serveCA(t *testing.T, listener net.Listener, options ...grpc.ServerOption) *certificateService {
	t.Helper()
	service := &certificateService{ca: newAuthority(t)}
	server := grpc.NewServer(options...)
	securityv1alpha1.RegisterIstioCertificateServiceServer(server, service)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener)
	}()
	t.Cleanup(func() { server.Stop(); <-done })
	return service
}

func mustListen(t *testing.T, network, address string) net.Listener {
	t.Helper()
	listener, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	return listener
}

func newTestManager(t *testing.T, server ControlPlane, ttl time.Duration) *Manager {
	t.Helper()
	client, err := NewCAClient(server, ttl)
	if err != nil {
		t.Fatal(err)
	}
	m := NewManager(Config{CA: client, BackoffMin: time.Millisecond})
	t.Cleanup(func() {
		m.Close()
		client.Close()
	})
	return m
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestCAOverUnixSocket(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "ca.sock")
	service := serveCA(t, mustListen(t, "unix", socket))
	m := newTestManager(t, ControlPlane{Address: "unix://" + socket, ClusterID: "c1", Token: "secret"}, 2*time.Hour)
	b := mustGet(t, m, testID("cart"))
	if got := PeerNames(b); len(got) != 1 || got[0] != testID("cart").String() {
		t.Errorf("certificate is for %v", got)
	}
	if got := service.last.GetValidityDuration(); got != 7200 {
		t.Errorf("validity asked for is %d s, want 7200", got)
	}
	if got := service.headers[0].Get("clusterid"); len(got) != 1 || got[0] != "c1" {
		t.Errorf("clusterid is %v, want c1", got)
	}
	if got := service.headers[0].Get("authorization"); len(got) != 0 {
		t.Errorf("token %v was sent in clear", got)
	}
}

// channelTLS makes a root, its file, and the configuration of a server for 127.0.0.1 or a name.
func channelTLS(t *testing.T, rootFile string, edit func(*x509.Certificate)) *tls.Config {
	t.Helper()
	ca := newAuthority(t)
	cert := certFor(t, ca, testID("istiod"), func(c *x509.Certificate) {
		c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
		if edit != nil {
			edit(c)
		}
	})
	writeFile(t, rootFile, pemText(ca.root))
	return &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2"}}
}

func TestCAOverTLSReadsTokenPerCall(t *testing.T) {
	dir := t.TempDir()
	root, token := filepath.Join(dir, "root.pem"), filepath.Join(dir, "token")
	writeFile(t, token, "one\n")
	listener := mustListen(t, "tcp", "127.0.0.1:0")
	service := serveCA(t, listener, grpc.Creds(credentials.NewTLS(channelTLS(t, root, nil))))
	m := newTestManager(t, ControlPlane{
		Address: "https://" + listener.Addr().String(), RootCA: root, Token: token, ClusterID: "c1",
		Headers: map[string]string{"x-extra": "yes"},
	}, 0)
	mustGet(t, m, testID("a"))
	writeFile(t, token, "two\n")
	mustGet(t, m, testID("b"))
	for i, want := range []string{"Bearer one", "Bearer two"} {
		if got := service.headers[i].Get("authorization"); len(got) != 1 || got[0] != want {
			t.Errorf("call %d: authorization is %v, want %q", i, got, want)
		}
		if got := service.headers[i].Get("x-extra"); len(got) != 1 || got[0] != "yes" {
			t.Errorf("call %d: x-extra is %v", i, got)
		}
	}
	if got := service.last.GetValidityDuration(); got != 86400 {
		t.Errorf("validity asked for is %d s, want a day", got)
	}
}

func TestCAFailures(t *testing.T) {
	dir := t.TempDir()
	root, strange, empty := filepath.Join(dir, "root.pem"), filepath.Join(dir, "strange.pem"), filepath.Join(dir, "empty")
	listener := mustListen(t, "tcp", "127.0.0.1:0")
	service := serveCA(t, listener, grpc.Creds(credentials.NewTLS(channelTLS(t, root, nil))))
	service.ca.fail = errors.New("impersonation failed: no such pod on the node")
	writeFile(t, strange, pemText(newAuthority(t).root))
	writeFile(t, empty, "\n")
	address := "https://" + listener.Addr().String()
	localhost := strings.Replace(address, "127.0.0.1", "localhost", 1)
	for _, test := range []struct {
		name   string
		server ControlPlane
		want   string
	}{
		{"refused by the CA", ControlPlane{Address: address, RootCA: root}, "code = Unauthenticated desc = impersonation failed: no such pod on the node"},
		{"server of another root", ControlPlane{Address: address, RootCA: strange}, "certificate signed by unknown authority"},
		{"server of another name", ControlPlane{Address: localhost, RootCA: root}, "but wanted to match localhost"},
		{"server of two other names", ControlPlane{Address: localhost, RootCA: root, ServerName: "istiod.example"}, "but wanted to match localhost"},
		{"server of the other name", ControlPlane{Address: localhost, RootCA: root, ServerName: "127.0.0.1"}, "impersonation failed"},
		{"root file missing", ControlPlane{Address: address, RootCA: filepath.Join(dir, "none")}, "control plane root: open "},
		{"root file without certificate", ControlPlane{Address: address, RootCA: empty}, "control plane root: no PEM certificate in"},
		{"system roots", ControlPlane{Address: address, RootCA: "SYSTEM"}, "certificate signed by unknown authority"},
		{"token file missing", ControlPlane{Address: address, RootCA: root, Token: filepath.Join(dir, "none")}, "bearer token: open "},
		{"token file empty", ControlPlane{Address: address, RootCA: root, Token: empty}, "is empty"},
		{"nobody there", ControlPlane{Address: "unix://" + filepath.Join(dir, "none.sock")}, "no such file or directory"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := newTestManager(t, test.server, 0).Get(t.Context(), testID("cart"))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Get = %v, want %q", err, test.want)
			}
		})
	}
}

func TestRootFileIsReadForEachConnection(t *testing.T) {
	dir := t.TempDir()
	root := filepath.Join(dir, "root.pem")
	good := channelTLS(t, root, nil)
	pem, err := os.ReadFile(root)
	if err != nil {
		t.Fatal(err)
	}
	listener := mustListen(t, "tcp", "127.0.0.1:0")
	serveCA(t, listener, grpc.Creds(credentials.NewTLS(good)))
	writeFile(t, root, pemText(newAuthority(t).root))
	m := newTestManager(t, ControlPlane{Address: listener.Addr().String(), RootCA: root}, 0)
	if _, err := m.Get(t.Context(), testID("cart")); err == nil {
		t.Fatal("a server of another root was accepted")
	}
	writeFile(t, root, string(pem))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for {
		if _, err = m.Get(ctx, testID("cart")); err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("still refused with the right root in the file: %v", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func TestControlPlaneAddresses(t *testing.T) {
	for address, good := range map[string]bool{
		"unix:///run/x.sock": true, "unix:/run/x.sock": true, "https://istiod:15012": true, "istiod:15012": true,
		"https://[fd00::1]:15012": true, "https://istiod:15012/": true,
		"": false, "istiod": false, "http://istiod:15012": false, "https://istiod": false, "https://istiod:15012/x": false,
		"unix://run/x.sock": false, "unix://": false, "https://:15012": false,
	} {
		err := ControlPlane{Address: address}.Validate()
		if (err == nil) != good {
			t.Errorf("address %q: %v, want good = %v", address, err, good)
		}
		if err != nil && !strings.Contains(err.Error(), "want unix:///path") {
			t.Errorf("address %q: %v does not say what is wanted", address, err)
		}
	}
}
