// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/installer/controlplane"
	"github.com/sluice-mesh/sluice/installer/ztunnels"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

const patience = 15 * time.Second

// lab is a node with an agent's inside: real pins, real sockets, and an Enroller that can be stopped and started again.
//
//	manifests/ ─► Catalog ─► Enroller ◄─ agent.sock ─ the test, as plugin and as ztunnel
//	                             └────► ztunnel.sock ─ the test, as ztunnel
type lab struct {
	t       *testing.T
	node    *testutil.Node
	root    string
	dir     string
	client  nodeapi.Client
	tune    func(*Config)
	catalog *controlplane.Catalog

	// Of the agent that runs now.
	bpf  *bpf.Node
	zt   *ztunnels.Server
	e    *Enroller
	stop func()
}

func newLab(t *testing.T, tune func(*Config)) *lab {
	t.Helper()
	testutil.RequireRoot(t)
	testutil.RequireKernel(t, "6.6", "tcx")
	l := &lab{t: t, node: testutil.NewNode(t), root: filepath.Join(testutil.BPFFS(t), "sluice", "v1"), dir: t.TempDir(), tune: tune}
	for _, d := range []string{"manifests", "workloads", "state"} {
		l.must(os.Mkdir(l.path(d), 0o700))
	}
	l.client.Socket = l.path("agent.sock")
	var err error
	l.catalog, err = controlplane.NewCatalog(controlplane.CatalogConfig{
		ManifestsDir: l.path("manifests"), WorkloadsDir: l.path("workloads"), Logger: slog.New(slog.DiscardHandler),
	})
	l.must(err)
	l.enrolNamespace("mesh", true)
	l.start()
	t.Cleanup(func() { l.stop() })
	return l
}

func (l *lab) path(parts ...string) string {
	return filepath.Join(append([]string{l.dir}, parts...)...)
}

func (l *lab) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

// start runs an agent's inside as package main does.
func (l *lab) start() {
	l.t.Helper()
	log := slog.New(slog.NewTextHandler(l.t.Output(), nil))
	l.catalog.Reload()
	var err error
	l.bpf, err = bpf.LoadNode(l.root)
	l.must(err)
	var e *Enroller
	l.zt, err = ztunnels.Listen(ztunnels.Config{Path: l.path("ztunnel.sock"), Timeout: 2 * time.Second, Changed: func() { e.Kick() }, Logger: log})
	l.must(err)
	cfg := Config{
		Node: l.bpf, Ztunnels: l.zt, Catalog: l.catalog, NodeName: "node1", StateDir: l.path("state"),
		WorkloadsDir: l.path("workloads"), Resync: 50 * time.Millisecond, Logger: log,
	}
	if l.tune != nil {
		l.tune(&cfg)
	}
	e, err = New(cfg)
	l.must(err)
	l.must(e.Restore())
	l.e = e
	api, err := nodeapi.Listen(l.client.Socket, e, log)
	l.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { e.Run(ctx, nil) })
	wg.Go(func() { _ = api.Serve(ctx) })
	wg.Go(func() { _ = l.zt.Serve(ctx) })
	l.stop = func() {
		cancel()
		wg.Wait()
		l.dropDescriptors()
		_ = l.bpf.Close()
		l.stop = func() {}
	}
}

// dropDescriptors is the part of a process's end that closing channels does not do.
func (l *lab) dropDescriptors() {
	for _, p := range l.e.all() {
		if p.inside != nil {
			p.inside.close()
		}
	}
}

func (l *lab) restart() {
	l.t.Helper()
	l.stop()
	l.start()
}

// enrolNamespace writes the namespace's manifest with or without the label.
func (l *lab) enrolNamespace(name string, on bool) {
	l.t.Helper()
	mode := "none"
	if on {
		mode = "ambient"
	}
	l.manifest("ns-"+name, fmt.Sprintf("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: %s\n  labels:\n    istio.io/dataplane-mode: %s\n", name, mode))
}

func (l *lab) manifest(name, text string) {
	l.t.Helper()
	l.must(os.WriteFile(l.path("manifests", name+".yaml"), []byte(text), 0o600))
	l.catalog.Reload()
	if l.e != nil {
		l.e.Kick()
	}
}

func (l *lab) eventually(check func() error) {
	l.t.Helper()
	testutil.Eventually(l.t, patience, check)
}

// sandbox is a pod as the runtime and the plugin see it.
type sandbox struct {
	*testutil.Pod
	l   *lab
	api nodeapi.Pod
}

func (l *lab) pod(namespace, name string) *sandbox {
	l.t.Helper()
	s := &sandbox{Pod: l.node.Pod(l.t, name), l: l}
	s.api = nodeapi.Pod{
		UID: "uid-" + name, Namespace: namespace, Name: name, ContainerID: strings.ToLower(s.NS.Name), Netns: s.Path, Network: "net",
		Interfaces: []nodeapi.Interface{{Name: "eth0", Addresses: []netip.Prefix{netip.PrefixFrom(s.Addr4, 32), netip.PrefixFrom(s.Addr6, 128)}}},
	}
	return s
}

func (s *sandbox) ask(verb nodeapi.Verb) (*nodeapi.Response, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	resp, _, err := s.l.client.Do(ctx, &nodeapi.Request{Verb: verb, Pod: &s.api})
	return resp, err
}

// decideAndAttach is the plugin's first half of ADD.
func (s *sandbox) decideAndAttach() (*nodeapi.Decision, error) {
	resp, err := s.ask(nodeapi.VerbDecide)
	if err != nil {
		return nil, err
	}
	d := resp.Decision
	if !d.Enrolled {
		return d, nil
	}
	told := Settings{
		CaptureAll: d.CaptureAll, CaptureDNS: d.CaptureDNS, BypassInbound: d.BypassInbound,
		ExcludeCIDRs: d.ExcludeCIDRs, ExcludePorts: d.ExcludePorts,
	}
	attached, err := s.l.bpf.AttachPod(podConfig(&pod{sandbox: s.api}, s.api.Interfaces, told))
	if err != nil {
		return nil, err
	}
	return d, attached.Close()
}

// add is the plugin's ADD, undo included.
func (s *sandbox) add() error {
	d, err := s.decideAndAttach()
	if err != nil || !d.Enrolled {
		return err
	}
	if _, err = s.ask(nodeapi.VerbServe); err != nil {
		_, rerr := s.ask(nodeapi.VerbRelease)
		return errors.Join(err, rerr, s.l.bpf.DetachPod(d.PinID))
	}
	return nil
}

// del is the plugin's DEL.
func (s *sandbox) del() error {
	_, err := s.ask(nodeapi.VerbRelease)
	return errors.Join(err, s.l.bpf.DetachPod(s.api.ContainerID))
}

func (s *sandbox) mustAdd() *sandbox {
	s.l.t.Helper()
	if err := s.add(); err != nil {
		s.l.t.Fatalf("add %s: %v", s.api.Name, err)
	}
	return s
}

// greeting is what answers a connection from inside the sandbox.
func (s *sandbox) greeting(addr netip.AddrPort) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := s.Dial(ctx, "tcp", addr.String())
	if err != nil {
		return "", err
	}
	defer c.Close()
	return readGreeting(c)
}

func readGreeting(c net.Conn) (string, error) {
	_ = c.SetDeadline(time.Now().Add(patience))
	b := make([]byte, 64)
	n, err := c.Read(b)
	return strings.TrimSpace(string(b[:n])), err
}

func (s *sandbox) wantGreeting(addr netip.AddrPort, want string) {
	s.l.t.Helper()
	got, err := s.greeting(addr)
	if err != nil || !strings.HasPrefix(got, want) {
		s.l.t.Errorf("connect %s from %s: got %q, %v, want %q", addr, s.api.Name, got, err, want)
	}
}

func (s *sandbox) attached() bool {
	p, err := s.l.bpf.Pod(s.api.ContainerID)
	if err == nil {
		_ = p.Close()
	}
	return err == nil
}

// slots counts the pod's slots that have a listener.
func (s *sandbox) slots() int {
	p, err := s.l.bpf.Pod(s.api.ContainerID)
	if err != nil {
		return 0
	}
	defer func() { _ = p.Close() }()
	n := 0
	for _, slot := range bpf.Slots() {
		if _, ok, _ := p.ListenerCookie(slot); ok {
			n++
		}
	}
	return n
}

func (s *sandbox) published() bool {
	_, err := os.Stat(s.l.path("workloads", "node1_"+s.api.Namespace+"_"+s.api.Name+".yaml"))
	return err == nil
}

func (s *sandbox) status() PodStatus {
	if p := s.l.e.get(s.api.ContainerID); p != nil {
		return s.l.e.podStatus(p)
	}
	return PodStatus{}
}

// nothingLeft checks that the agent's half of the pod is undone.
func (s *sandbox) nothingLeft() {
	s.l.t.Helper()
	if s.published() {
		s.l.t.Error("workload file is still there")
	}
	if p := s.l.e.get(s.api.ContainerID); p != nil {
		s.l.t.Errorf("agent still knows the pod: %s", s.l.e.phaseOf(p))
	}
	if _, err := os.Stat(s.l.e.recordPath(s.api.ContainerID)); !errors.Is(err, os.ErrNotExist) {
		s.l.t.Errorf("record of pod: %v", err)
	}
	if s.l.e.MayImpersonate("spiffe://cluster.local/ns/" + s.api.Namespace + "/sa/default") {
		s.l.t.Error("the pod's identity may still be impersonated")
	}
}
