// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/sluice-mesh/sluice/installer/enroll"
	"github.com/sluice-mesh/sluice/internal/lab"
	"github.com/sluice-mesh/sluice/internal/netns"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

const (
	httpPort = 8080
	grpcPort = 9090
	hostPort = 18080

	// closed lets nobody in: no plain text, and nobody over mTLS either.
	closed = `
apiVersion: v1
kind: Namespace
metadata: {name: closed, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: closed}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: closed}
spec: {}
`
)

// probed is a pod that answers all kinds of probes and counts who came.
type probed struct {
	*lab.Pod
	node *lab.Node
	seen atomic.Int64
}

// Accept counts.
type countingListener struct {
	net.Listener
	seen *atomic.Int64
}

func (l countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.seen.Add(1)
	}
	return c, err
}

// addProbed makes a pod nobody may talk to, with an HTTP, a gRPC and a TCP server.
func (m *mesh) addProbed(node int) *probed {
	m.t.Helper()
	n := m.Nodes[node]
	pod, err := n.AddPod(lab.PodSpec{Name: fmt.Sprintf("probed%d", node+1), Namespace: "closed", HostPort: hostPort, ContainerPort: httpPort})
	m.must(err)
	p := &probed{Pod: pod, node: n}
	listen := func(port int) net.Listener {
		return countingListener{inside(pod).Listen(m.t, "tcp", fmt.Sprintf("[::]:%d", port)), &p.seen}
	}
	web := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, pod.Name) }), ReadHeaderTimeout: effect}
	rpc := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(rpc, health.NewServer())
	tcp := listen(echoPort)
	for _, serve := range []func(){
		func() { _ = web.Serve(listen(httpPort)) },
		func() { _ = rpc.Serve(listen(grpcPort)) },
		func() { greet(tcp, pod.Name) },
	} {
		go serve()
	}
	m.t.Cleanup(func() { _ = web.Close(); rpc.Stop() })
	return p
}

// greet says name to whoever connects, until l closes.
func greet(l net.Listener, name string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		fmt.Fprintln(c, name)
		_ = c.Close()
	}
}

// probes ask a pod in the ways that kubelet does; an error means that it was not that pod that answered.
var probes = map[string]struct {
	port int
	ask  func(ctx context.Context, from *testutil.NS, to netip.AddrPort, name string) error
}{
	"http": {httpPort, askHTTP},
	"grpc": {grpcPort, askGRPC},
	"tcp":  {echoPort, askTCP},
}

func askHTTP(ctx context.Context, from *testutil.NS, to netip.AddrPort, name string) error {
	transport := &http.Transport{DialContext: from.Dial, DisableKeepAlives: true}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+to.String()+"/", nil)
	if err != nil {
		return err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && string(body) != name {
		err = fmt.Errorf("%q answered, want %q", body, name)
	}
	return err
}

func askGRPC(ctx context.Context, from *testutil.NS, to netip.AddrPort, _ string) error {
	conn, err := grpc.NewClient("passthrough:///"+to.String(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return from.Dial(ctx, "tcp", addr) }))
	if err != nil {
		return err
	}
	defer conn.Close()
	resp, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	if err == nil && resp.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		err = errors.New(resp.Status.String())
	}
	return err
}

func askTCP(ctx context.Context, from *testutil.NS, to netip.AddrPort, name string) error {
	c, err := from.Dial(ctx, "tcp", to.String())
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(effect))
	body, err := io.ReadAll(c)
	if err == nil && strings.TrimSpace(string(body)) != name {
		err = fmt.Errorf("%q answered, want %q", body, name)
	}
	return err
}

func namespaceOf(name string) *testutil.NS {
	return &testutil.NS{Name: name, Path: netns.NamedPath(name)}
}

// try runs every probe over both families and hands its outcome to check.
func (p *probed) try(t *testing.T, from *testutil.NS, to func(family, port int) netip.AddrPort, check func(what string, err error)) {
	t.Helper()
	for kind, probe := range probes {
		for _, family := range []int{4, 6} {
			ctx, cancel := context.WithTimeout(t.Context(), effect)
			err := probe.ask(ctx, from, to(family, probe.port), p.Name)
			cancel()
			check(fmt.Sprintf("%s over IPv%d from %s", kind, family, from.Name), err)
		}
	}
}

func (p *probed) at(family, port int) netip.AddrPort {
	return netip.AddrPortFrom(p.Addr(family), uint16(port))
}

// wantRefused fails the test if the app saw anything of what f tries.
func (p *probed) wantRefused(t *testing.T, f func(check func(what string, err error))) {
	t.Helper()
	before := p.seen.Load()
	f(func(what string, err error) {
		if err == nil {
			t.Errorf("%s: answered by the app of %s", what, p.Name)
		}
	})
	if n := p.seen.Load() - before; n != 0 {
		t.Errorf("app of %s accepted %d connections that it should not have seen", p.Name, n)
	}
}

// TestHostProbesReachAPodThatNobodyMayTalkTo has a pod behind a bridge and one behind a point-to-point link.
func TestHostProbesReachAPodThatNobodyMayTalkTo(t *testing.T) {
	m := newMesh(t)
	m.write("closed.yaml", closed)
	legacy := m.addPod(0, "legacy", "plain")
	for i, n := range m.Nodes {
		m.wantHost(n, "probe", func(s *enroll.Status) bool { return s.Host.Probe.Attached })
		p := m.addProbed(i)
		m.settle(p)
		host := namespaceOf(n.NS)
		p.try(t, host, p.at, func(what string, err error) {
			if err != nil {
				t.Errorf("probe of %s: %s: %v", p.Name, what, err)
			}
		})
		others := []*testutil.NS{inside(m.client), inside(m.server), inside(legacy), namespaceOf(m.NS("outside")), namespaceOf(m.Nodes[1-i].NS)}
		for _, from := range others {
			p.wantRefused(t, func(check func(string, error)) { p.try(t, from, p.at, check) })
		}
		m.wantForwardedRefused(p)
	}
}

// settle waits until the policies are in force: the plain pod's connections are refused.
func (m *mesh) settle(p *probed) {
	m.t.Helper()
	testutil.Eventually(m.t, effect, func() error {
		ctx, cancel := context.WithTimeout(m.t.Context(), effect)
		defer cancel()
		if err := askTCP(ctx, namespaceOf(m.NS("outside")), p.at(4, echoPort), p.Name); err == nil {
			return errors.New("still open to everybody")
		}
		return nil
	})
}

// wantForwardedRefused comes by a port of the node's, with the client's address and with the node's own.
func (m *mesh) wantForwardedRefused(p *probed) {
	m.t.Helper()
	node, outside := namespaceOf(p.node.NS), namespaceOf(m.NS("outside"))
	byNode := map[int]netip.Addr{4: p.node.Wire4, 6: p.node.Wire6}
	forwarded := func(check func(string, error)) {
		for _, family := range []int{4, 6} {
			ctx, cancel := context.WithTimeout(m.t.Context(), effect)
			err := askHTTP(ctx, outside, netip.AddrPortFrom(byNode[family], hostPort), p.Name)
			cancel()
			check(fmt.Sprintf("port of the node over IPv%d", family), err)
		}
	}
	p.wantRefused(m.t, forwarded)
	node.Run(m.t, "nft", fmt.Sprintf("add table inet forwarded; add chain inet forwarded post { type nat hook postrouting priority 90 ; }; "+
		"add rule inet forwarded post tcp dport %d counter masquerade", httpPort))
	p.wantRefused(m.t, forwarded)
	p.wantRefused(m.t, func(check func(string, error)) { p.try(m.t, outside, p.at, check) })
	if rule := node.Run(m.t, "nft", "list", "table", "inet", "forwarded"); strings.Contains(rule, "packets 0 ") || !strings.Contains(rule, "packets ") {
		m.t.Errorf("no connection had its source rewritten: %s", rule)
	}
}

// wantHost waits until the agent's status says so.
func (m *mesh) wantHost(n *lab.Node, what string, is func(*enroll.Status) bool) {
	m.t.Helper()
	client := nodeapi.Client{Socket: n.AgentSocket()}
	testutil.Eventually(m.t, effect, func() error {
		resp, _, err := client.Do(m.t.Context(), &nodeapi.Request{Verb: nodeapi.VerbStatus})
		if err != nil {
			return err
		}
		var s enroll.Status
		if err := json.Unmarshal(resp.Status, &s); err != nil {
			return err
		}
		if !is(&s) {
			return fmt.Errorf("%s: status of the host: %+v, %s", what, s.Host, s.HostProblem)
		}
		return nil
	})
}
