// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"

	"github.com/sluice-mesh/sluice/internal/testutil"
	"github.com/sluice-mesh/sluice/internal/zds"
)

// emptyMesh is a control plane that knows nothing: each subscription gets one empty answer.
type emptyMesh struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
}

func (emptyMesh) DeltaAggregatedResources(s discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	for {
		req, err := s.Recv()
		if err != nil {
			return err
		}
		if req.GetResponseNonce() != "" {
			continue
		}
		if err := s.Send(&discoveryv3.DeltaDiscoveryResponse{TypeUrl: req.GetTypeUrl(), Nonce: req.GetTypeUrl()}); err != nil {
			return err
		}
	}
}

// process is ztunnel, run as main does, driven by a foreign agent.
type process struct {
	t              *testing.T
	dir            string
	admin, ready   string
	agent          *zds.Listener
	stdout, stderr lockedBuffer
	exit           chan int
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// start runs ztunnel. controlPlane says whether there is one.
func start(t *testing.T, controlPlane bool, args ...string) *process {
	t.Helper()
	testutil.RequireRoot(t)
	p := &process{t: t, dir: t.TempDir(), exit: make(chan int, 1)}
	p.admin, p.ready = address(t), address(t)
	var err error
	if p.agent, err = zds.Listen(filepath.Join(p.dir, "ztunnel.sock"), slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.agent.Close() })
	if controlPlane {
		p.serveControlPlane()
	}
	args = append([]string{
		"--node-name=n1", "--agent-socket=", "--zds-socket=" + filepath.Join(p.dir, "ztunnel.sock"),
		"--xds-address=unix://" + filepath.Join(p.dir, "xds.sock"), "--admin-address=" + p.admin, "--readiness-address=" + p.ready,
		"--stats-address=127.0.0.1:0",
	}, args...)
	go func() { p.exit <- run(args, func(string) string { return "" }, nil, &p.stdout, &p.stderr) }()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("ztunnel said:\n%s%s", p.stdout.String(), p.stderr.String())
		}
	})
	return p
}

func address(t *testing.T) string { return fmt.Sprintf("127.0.0.1:%d", testutil.FreePort(t)) }

func (p *process) serveControlPlane() {
	p.t.Helper()
	l, err := net.Listen("unix", filepath.Join(p.dir, "xds.sock"))
	if err != nil {
		p.t.Fatal(err)
	}
	server := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(server, emptyMesh{})
	go func() { _ = server.Serve(l) }()
	p.t.Cleanup(server.Stop)
}

// snapshot accepts ztunnel's connection and sends an empty snapshot.
func (p *process) snapshot() *zds.Conn {
	p.t.Helper()
	conn, err := p.agent.Accept()
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Receive(&zds.ZdsHello{}); err != nil {
		p.t.Fatal(err)
	}
	p.send(conn, &zds.WorkloadRequest{Payload: &zds.WorkloadRequest_SnapshotSent{SnapshotSent: &zds.SnapshotSent{}}})
	return conn
}

func (p *process) send(conn *zds.Conn, req *zds.WorkloadRequest) {
	p.t.Helper()
	if err := conn.Send(req); err != nil {
		p.t.Fatal(err)
	}
	if _, err := conn.Receive(&zds.WorkloadResponse{}); err != nil {
		p.t.Fatal(err)
	}
}

// wantReady waits for an answer of the readiness page that contains text.
func (p *process) wantReady(text string) {
	p.t.Helper()
	testutil.Eventually(p.t, 10*time.Second, func() error {
		body, err := fetch("GET", "http://"+p.ready+"/healthz/ready")
		if err == nil && !strings.HasPrefix(body, text) {
			err = fmt.Errorf("readiness: got %q, want %q", body, text)
		}
		return err
	})
}

func fetch(method, url string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

func (p *process) wantExit(code int) {
	p.t.Helper()
	select {
	case got := <-p.exit:
		if got != code {
			p.t.Errorf("exit code: got %d, want %d", got, code)
		}
	case <-time.After(10 * time.Second):
		p.t.Fatal("ztunnel does not end")
	}
}

func TestBecomesReadyStepByStepAndQuits(t *testing.T) {
	p := start(t, false)
	p.wantReady("not ready, pending: state manager, workload proxy manager")
	p.serveControlPlane()
	p.wantReady("not ready, pending: workload proxy manager")
	_ = p.snapshot()
	p.wantReady("ready")
	dump, err := fetch("GET", "http://"+p.admin+"/config_dump")
	if err != nil || !strings.Contains(dump, `"NodeName": "n1"`) {
		t.Errorf("config dump: got %v, %s", err, dump)
	}
	if _, err := fetch("POST", "http://"+p.admin+"/quitquitquit"); err != nil {
		t.Fatal(err)
	}
	p.wantExit(exitOK)
}

func TestLocalFileStandsInForTheControlPlane(t *testing.T) {
	p := start(t, false, "--xds-address=", "--ca-address=unix:///nowhere/ca.sock", "--local-xds-path=discovery/testdata/local.yaml")
	p.wantReady("not ready, pending: workload proxy manager")
	_ = p.snapshot()
	p.wantReady("ready")
	dump, err := fetch("GET", "http://"+p.admin+"/config_dump")
	if err != nil || !strings.Contains(dump, `"uid": "cluster1//v1/Pod/default/local"`) {
		t.Errorf("config dump: got %v, %s", err, dump)
	}
	if _, err := fetch("POST", "http://"+p.admin+"/quitquitquit"); err != nil {
		t.Fatal(err)
	}
	p.wantExit(exitOK)
}

func TestLocalFileStandsBesideTheControlPlane(t *testing.T) {
	p := start(t, false, "--local-xds=workloads: [{name: a, namespace: b, workloadIps: [], services: {}}]")
	p.wantReady("not ready, pending: state manager")
	p.serveControlPlane()
	p.wantReady("not ready, pending: workload proxy manager")
	if dump, err := fetch("GET", "http://"+p.admin+"/config_dump"); err != nil || !strings.Contains(dump, `"uid": "Kubernetes//Pod/b/a"`) {
		t.Errorf("config dump: got %v, %s", err, dump)
	}
	if _, err := fetch("POST", "http://"+p.admin+"/quitquitquit"); err != nil {
		t.Fatal(err)
	}
	p.wantExit(exitOK)
}

func TestBadLocalFileEndsWithAnError(t *testing.T) {
	p := start(t, false, "--local-xds=pods: []")
	p.wantExit(exitFailed)
	if !strings.Contains(p.stdout.String(), "local xds LOCAL_XDS: ") {
		t.Error("the log does not name the source")
	}
}

func TestSignalEndsBeforeAnythingAnswered(t *testing.T) {
	p := start(t, false)
	p.wantReady("not ready")
	if err := syscall.Kill(syscall.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.wantExit(exitOK)
}

func TestAddressInUseEndsWithAnError(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	p := start(t, false, "--admin-address="+taken.Addr().String())
	p.wantExit(exitFailed)
	if !strings.Contains(p.stdout.String(), "admin page: listen tcp") {
		t.Error("the log does not name the page")
	}
}

func TestProtocolErrorOfTheAgentEndsWithAnError(t *testing.T) {
	p := start(t, true)
	conn := p.snapshot()
	p.send(conn, &zds.WorkloadRequest{Payload: &zds.WorkloadRequest_Keep{Keep: &zds.KeepWorkload{Uid: "u1"}}})
	p.wantExit(exitFailed)
	if !strings.Contains(p.stdout.String(), `zds protocol error: keep \"u1\" after the snapshot`) {
		t.Error("the log does not say why")
	}
}

func TestWaitsForTheDatapath(t *testing.T) {
	root := filepath.Join(testutil.BPFFS(t), "sluice", "v1")
	p := start(t, true, "--agent-socket=/nowhere/agent.sock", "--pin-root="+root)
	p.wantReady("not ready, pending: state manager, workload proxy manager, datapath")
	if _, err := fetch("POST", "http://"+p.admin+"/quitquitquit"); err != nil {
		t.Fatal(err)
	}
	p.wantExit(exitOK)
}
