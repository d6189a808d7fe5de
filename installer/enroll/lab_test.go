// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/installer/controlplane"
	"github.com/sluice-mesh/sluice/installer/ztunnels"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
	"github.com/sluice-mesh/sluice/internal/testutil"
	"github.com/sluice-mesh/sluice/internal/zds"
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
	attached, err := s.l.bpf.AttachPod(bpf.PodConfig{
		ID: d.PinID, UID: s.api.UID, Namespace: s.api.Namespace, Name: s.api.Name, ContainerID: s.api.ContainerID,
		NetnsPath: s.Path, Interfaces: []string{"eth0"}, Network: "net",
	})
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

// ztunnel is a fake one: it speaks ZDS, asks for listeners, and says its name and the slot to whoever connects.
type ztunnel struct {
	l      *lab
	name   string
	refuse string // not empty: answer to Adds
	hang   chan struct{}
	stopZ  context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	dead   bool
	pods   map[string]map[string]*net.TCPListener // uid -> slot
	events []string
	conns  []net.Conn
	// pending are pods to be tried again; named are those of the snapshot so far, nil once it is complete.
	pending, named map[string]bool
}

func (l *lab) ztunnel(name string, tune ...func(*ztunnel)) *ztunnel {
	l.t.Helper()
	z := &ztunnel{l: l, name: name, pods: map[string]map[string]*net.TCPListener{}}
	for _, f := range tune {
		f(z)
	}
	z.run()
	return z
}

// run starts z and returns once it has its snapshot. It reconnects until killed.
func (z *ztunnel) run() {
	z.l.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	z.stopZ = cancel
	z.wg.Go(func() {
		for ctx.Err() == nil {
			z.session(ctx)
			select {
			case <-ctx.Done():
			case <-time.After(5 * time.Millisecond):
			}
		}
	})
	z.l.t.Cleanup(z.kill)
	z.waitEvent("snapshot")
}

// session is one connection, until it ends.
func (z *ztunnel) session(ctx context.Context) {
	c, err := zds.Dial(ctx, z.l.path("ztunnel.sock"))
	if err != nil {
		return
	}
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	defer func() { _ = c.Close() }()
	z.mu.Lock()
	z.pending, z.named = map[string]bool{}, map[string]bool{}
	z.mu.Unlock()
	if c.Send(&zds.ZdsHello{Version: zds.Version_V1}) != nil {
		return
	}
	for {
		var r zds.WorkloadRequest
		fds, err := c.Receive(&r)
		if err != nil {
			return
		}
		zds.CloseFDs(fds)
		text := ""
		if err := z.handle(ctx, &r); err != nil {
			text = err.Error()
		}
		if c.Send(&zds.WorkloadResponse{Payload: &zds.WorkloadResponse_Ack{Ack: &zds.Ack{Error: text}}}) != nil {
			return
		}
	}
}

func (z *ztunnel) handle(ctx context.Context, r *zds.WorkloadRequest) error {
	switch p := r.Payload.(type) {
	case *zds.WorkloadRequest_Add:
		z.note("add " + p.Add.Uid + " " + p.Add.WorkloadInfo.ServiceAccount)
		if z.hang != nil {
			<-z.hang
		}
		if z.refuse != "" {
			return errors.New(z.refuse)
		}
		err := z.takeListeners(ctx, p.Add.Uid)
		z.mu.Lock()
		defer z.mu.Unlock()
		if z.named != nil {
			z.named[p.Add.Uid] = true
		}
		if err != nil {
			z.pending[p.Add.Uid] = true
		}
		return err
	case *zds.WorkloadRequest_Del:
		z.drop(p.Del.Uid)
		z.note("del " + p.Del.Uid)
	case *zds.WorkloadRequest_SnapshotSent:
		z.dropUnnamed()
		z.note("snapshot")
	}
	return nil
}

func (z *ztunnel) takeListeners(ctx context.Context, uid string) error {
	z.mu.Lock()
	held := z.pods[uid]
	z.mu.Unlock()
	req := &nodeapi.Request{Verb: nodeapi.VerbListeners, Pod: &nodeapi.Pod{UID: uid}}
	var offer []int
	for slot, ln := range held {
		raw, err := ln.SyscallConn()
		if err != nil {
			return err
		}
		// Not (*os.File).Fd: it would make the socket, which is shared, a blocking one.
		err = raw.Control(func(s uintptr) {
			fd, err := unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 0)
			if err == nil {
				req.Slots, offer = append(req.Slots, slot), append(offer, fd)
			}
		})
		if err != nil {
			return err
		}
	}
	defer nodeapi.CloseFDs(offer)
	resp, fds, err := z.l.client.Do(ctx, req, offer...)
	if err != nil {
		return err
	}
	fresh := map[string]*net.TCPListener{}
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), resp.Slots[i])
		ln, err := net.FileListener(f)
		_ = f.Close()
		if err != nil {
			return err
		}
		fresh[resp.Slots[i]] = ln.(*net.TCPListener)
		z.wg.Go(func() { z.accept(ln, resp.Slots[i]) })
	}
	for _, ln := range held {
		_ = ln.Close()
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	z.pods[uid] = fresh
	if z.dead {
		z.closeLocked()
	}
	return nil
}

// hanging has Adds wait until z is killed.
func hanging(z *ztunnel) { z.hang = make(chan struct{}) }

func refusing(text string) func(*ztunnel) { return func(z *ztunnel) { z.refuse = text } }

func (z *ztunnel) accept(ln net.Listener, slot string) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		fmt.Fprintf(c, "%s %s %s\n", z.name, slot, c.LocalAddr())
		z.mu.Lock()
		z.conns = append(z.conns, c)
		z.mu.Unlock()
	}
}

// dropUnnamed stops what the snapshot does not have.
func (z *ztunnel) dropUnnamed() {
	z.mu.Lock()
	var gone []string
	for uid := range z.pods {
		if !z.named[uid] {
			gone = append(gone, uid)
		}
	}
	z.named = nil
	z.mu.Unlock()
	for _, uid := range gone {
		z.drop(uid)
	}
}

// retry tries pods again that could not be served; the real one does so every 5 s.
func (z *ztunnel) retry(ctx context.Context) {
	z.mu.Lock()
	pending := slices.Collect(maps.Keys(z.pending))
	z.mu.Unlock()
	for _, uid := range pending {
		if z.takeListeners(ctx, uid) == nil {
			z.mu.Lock()
			delete(z.pending, uid)
			z.mu.Unlock()
		}
	}
}

func (z *ztunnel) drop(uid string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	delete(z.pending, uid)
	for _, ln := range z.pods[uid] {
		_ = ln.Close()
	}
	delete(z.pods, uid)
}

func (z *ztunnel) note(event string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.events = append(z.events, event)
}

// seen counts an event.
func (z *ztunnel) seen(event string) (n int) {
	z.mu.Lock()
	defer z.mu.Unlock()
	for _, e := range z.events {
		if e == event {
			n++
		}
	}
	return n
}

func (z *ztunnel) waitEvent(event string) {
	z.l.t.Helper()
	z.l.eventually(func() error {
		if z.seen(event) == 0 {
			return fmt.Errorf("ztunnel %s has not seen %q", z.name, event)
		}
		return nil
	})
}

// kill is the process's end: everything it has open closes.
func (z *ztunnel) kill() {
	z.stopZ()
	z.mu.Lock()
	z.dead = true
	z.closeLocked()
	z.mu.Unlock()
	if z.hang != nil {
		select {
		case <-z.hang:
		default:
			close(z.hang)
		}
	}
	z.wg.Wait()
}

func (z *ztunnel) closeLocked() {
	for _, set := range z.pods {
		for _, ln := range set {
			_ = ln.Close()
		}
	}
	for _, c := range z.conns {
		_ = c.Close()
	}
	z.pods, z.conns = map[string]map[string]*net.TCPListener{}, nil
}
