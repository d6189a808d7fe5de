// SPDX-License-Identifier: Apache-2.0

// Package kube runs a real Kubernetes API server over a real etcd, without kubelets or controllers: what a test says of
// pods and nodes is what the API says of them. With Config.Cluster it is the API server of internal/lab/cluster, which has
// both.
//
//	test ── client certificate ──► kube-apiserver ── loopback ──► etcd
//	        (kubeconfig)           127.0.0.1:PORT                 temporary folder
//
// Nobody but the test makes service accounts, sets the status of a pod, or finishes the deletion of a namespace.
package kube

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// startTimeout is how long etcd and the API server together may take, on a machine that is busy.
const startTimeout = 2 * time.Minute

// Config says where an API server runs, and for what. The zero value is 127.0.0.1 and the network namespace of the test.
type Config struct {
	// Address is where it listens. It must be an address of the namespace.
	Address string
	// Wrap comes before the command of each process, to run it in a namespace of its own: nsenter and its arguments.
	Wrap []string
	// Dial is how the test's own clients reach it; nil: directly.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Cluster makes it the API server of a cluster that has controllers and kubelets: pods need a service account, which
	// the controller manager makes; Service "kubernetes" leads to Address; both families have addresses of services.
	Cluster bool
}

// ServiceAddress and ServiceAddress6 are those of Service "kubernetes".
const (
	ServiceAddress  = "10.252.0.1"
	ServiceAddress6 = "fd00:10:252::1"
)

// APIServer is a running API server, with Istio's two kinds of policies installed. Safe for concurrent use, but for Stop
// and Start.
type APIServer struct {
	// URL is https://ADDRESS:PORT. It stays the same over Stop and Start.
	URL string

	t              testing.TB
	cfg            Config
	dir            string
	port, etcdPort int
	pki            *pki
	etcd, api      *Process
}

// NewAPIServer starts one for the time of the test. Without its binary (make build/k8s/kube-apiserver) or etcd the test is
// skipped; with CI=true it fails.
func NewAPIServer(t testing.TB) *APIServer { return NewAPIServerAt(t, Config{}) }

// NewAPIServerAt is NewAPIServer, elsewhere.
func NewAPIServerAt(t testing.TB, cfg Config) *APIServer {
	t.Helper()
	if cfg.Address == "" {
		cfg.Address = "127.0.0.1"
	}
	s := &APIServer{t: t, cfg: cfg, dir: t.TempDir(), port: testutil.FreePort(t), etcdPort: testutil.FreePort(t)}
	s.URL = "https://" + net.JoinHostPort(cfg.Address, strconv.Itoa(s.port))
	s.pki = newPKI(t, filepath.Join(s.dir, "pki"), cfg.Address)
	s.etcd = &Process{Name: "etcd", Log: filepath.Join(s.dir, "etcd.log"), Argv: slices.Concat(cfg.Wrap, s.etcdCommand())}
	s.api = &Process{Name: "kube-apiserver", Log: filepath.Join(s.dir, "kube-apiserver.log"), Argv: slices.Concat(cfg.Wrap, s.apiCommand())}
	t.Cleanup(func() {
		s.api.Stop(t)
		s.etcd.Stop(t)
		if t.Failed() {
			t.Logf("end of the API server's log:\n%s", s.api.Tail())
		}
	})
	s.etcd.Start(t)
	s.Start()
	s.installPolicies()
	return s
}

func (s *APIServer) etcdCommand() []string {
	path, err := exec.LookPath("etcd")
	if err != nil {
		missing(s.t, "etcd is not installed (Debian: etcd-server)")
	}
	peer := "http://127.0.0.1:" + strconv.Itoa(testutil.FreePort(s.t))
	return []string{path, "--name=lab", "--data-dir=" + filepath.Join(s.dir, "etcd"), "--log-level=warn", "--logger=zap",
		"--listen-client-urls=" + s.etcdURL(), "--advertise-client-urls=" + s.etcdURL(),
		"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer, "--initial-cluster=lab=" + peer}
}

func (s *APIServer) etcdURL() string { return "http://127.0.0.1:" + strconv.Itoa(s.etcdPort) }

func (s *APIServer) apiCommand() []string {
	return append([]string{Binary(s.t, "kube-apiserver"),
		"--bind-address=" + s.cfg.Address, "--advertise-address=" + s.cfg.Address, "--secure-port=" + strconv.Itoa(s.port),
		"--etcd-servers=" + s.etcdURL(),
		"--tls-cert-file=" + s.pki.path("server.crt"), "--tls-private-key-file=" + s.pki.path("server.key"),
		"--client-ca-file=" + s.pki.path("ca.crt"), "--cert-dir=" + s.pki.dir,
		"--service-account-key-file=" + s.pki.path("sa.pub"), "--service-account-signing-key-file=" + s.pki.path("sa.key"),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--authorization-mode=RBAC,Node", "--allow-privileged=true", "--watch-cache=true", "--v=1"}, s.purpose()...)
}

// purpose are the options of a whole cluster, or of an API server alone.
func (s *APIServer) purpose() []string {
	if !s.cfg.Cluster {
		return []string{"--endpoint-reconciler-type=none", "--service-cluster-ip-range=10.252.0.0/24",
			"--api-audiences=https://kubernetes.default.svc,istio-ca", "--disable-admission-plugins=ServiceAccount"}
	}
	cert, key := s.Certificate("kube-apiserver-kubelet-client", "system:masters")
	return []string{"--service-cluster-ip-range=10.252.0.0/24,fd00:10:252::/112", "--kubelet-preferred-address-types=InternalIP",
		"--kubelet-client-certificate=" + cert, "--kubelet-client-key=" + key, "--kubelet-certificate-authority=" + s.CA()}
}

// Start brings the API server up again after Stop, and returns once it answers.
func (s *APIServer) Start() {
	s.t.Helper()
	s.api.Start(s.t)
	client := s.Client()
	testutil.Eventually(s.t, startTimeout, func() error {
		if err := s.api.Ended(); err != nil {
			s.t.Fatalf("kube-apiserver ended: %v\n%s", err, s.api.Tail())
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_, err := client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		return err
	})
}

// Stop kills the API server, as an outage does: connections are cut, and new ones refused. What etcd holds stays.
func (s *APIServer) Stop() {
	s.t.Helper()
	s.api.Kill(s.t)
}

// Kubeconfig is the path of a file for the cluster's administrator.
func (s *APIServer) Kubeconfig() string { return s.KubeconfigFor("admin", "system:masters") }

// KubeconfigFor writes a file for a user who is in the given groups, and returns its path.
func (s *APIServer) KubeconfigFor(user string, groups ...string) string {
	s.t.Helper()
	return s.pki.kubeconfig(s.t, s.URL, user, groups)
}

// RESTConfig is the administrator's, without a limit on requests.
func (s *APIServer) RESTConfig() *rest.Config {
	s.t.Helper()
	c := s.pki.restConfig(s.t, s.URL, "admin", []string{"system:masters"})
	c.Dial = s.cfg.Dial
	return c
}

// Client is the administrator's.
func (s *APIServer) Client() kubernetes.Interface {
	s.t.Helper()
	c, err := kubernetes.NewForConfig(s.RESTConfig())
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// Dynamic is the administrator's client for kinds that have no Go types.
func (s *APIServer) Dynamic() dynamic.Interface {
	s.t.Helper()
	c, err := dynamic.NewForConfig(s.RESTConfig())
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// Binary is the path of a part of Kubernetes that the Makefile built.
func Binary(t testing.TB, part string) string { t.Helper(); return Built(t, "k8s/"+part) }

// Built is the path of a file of the Makefile's folder build. Without it the test is skipped; with CI=true it fails.
func Built(t testing.TB, name string) string {
	t.Helper()
	path := builtPath(t, name)
	if _, err := os.Stat(path); err != nil {
		missing(t, fmt.Sprintf("%v: run \"make build/%s\"", err, name))
	}
	return path
}

// IsBuilt reports whether there is such a file.
func IsBuilt(t testing.TB, name string) bool {
	t.Helper()
	_, err := os.Stat(builtPath(t, name))
	return err == nil
}

func builtPath(t testing.TB, name string) string {
	t.Helper()
	dir := os.Getenv("SLUICE_BUILD")
	if dir == "" {
		dir = filepath.Join(moduleRoot(t), "build")
	}
	return filepath.Join(dir, name)
}

func missing(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
}
