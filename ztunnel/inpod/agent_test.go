// SPDX-License-Identifier: Apache-2.0

package inpod

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/sluice-mesh/sluice/internal/testutil"
	"github.com/sluice-mesh/sluice/internal/zds"
)

// fixture is a ztunnel without a proxy, driven by a fake agent over a real ZDS socket.
//
//	fakeAgent ──ZDS──► Client ──► Manager ──► fakeProxy
type fixture struct {
	t       *testing.T
	agent   *net.UnixListener
	client  *Client
	manager *Manager
	ended   chan error // what Client.Run returned

	mu        sync.Mutex
	listenErr error
	proxies   map[string]*fakeProxy // the last of each UID
	ready     bool
	counts    [2]int
}

type fakeProxy struct {
	pod      *Pod
	f        *fixture
	stopped  bool
	drained  bool
	replaced int
}

func (p *fakeProxy) Replace(*Listeners) { p.f.set(func() { p.replaced++ }) }

func (p *fakeProxy) Drain(context.Context) { p.f.set(func() { p.drained = true }) }

func (p *fakeProxy) Stop() { p.f.set(func() { p.stopped = true }) }

func (f *fixture) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fixture) Counts(running, pending int) { f.set(func() { f.counts = [2]int{running, pending} }) }
func (f *fixture) Started()                    {}
func (f *fixture) Stopped()                    {}

func newFixture(t *testing.T) *fixture {
	testutil.RequireRoot(t)
	f := &fixture{t: t, proxies: map[string]*fakeProxy{}, ended: make(chan error, 1)}
	var err error
	path := filepath.Join(t.TempDir(), "ztunnel.sock")
	f.agent, err = net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.agent.Close() })
	ctx, cancel := context.WithCancel(t.Context())
	log := slog.New(slog.NewTextHandler(testWriter{t}, nil))
	f.manager = &Manager{
		Sockets:  NewSockets(ctx, func(int) error { return nil }),
		Listen:   f.listen,
		Start:    f.start,
		Observer: f,
		Log:      log,
	}
	f.client = &Client{
		Socket: path, Manager: f.manager, Log: log, RetryInterval: 20 * time.Millisecond,
		Ready: func(ready bool) { f.set(func() { f.ready = ready }) },
	}
	go func() { f.ended <- f.client.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-f.ended
		f.manager.Drain(ctx)
	})
	return f
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) { w.t.Log(string(b)); return len(b), nil }

func (f *fixture) listen(context.Context, *Pod, *Listeners) (*Listeners, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &Listeners{}, f.listenErr
}

func (f *fixture) start(p *Pod, _ *Listeners) Proxy {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.proxies[p.UID] = &fakeProxy{pod: p, f: f}
	return f.proxies[p.UID]
}

func (f *fixture) proxy(uid string) fakeProxy {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	p, ok := f.proxies[uid]
	if !ok {
		f.t.Fatalf("no proxy was started for %s", uid)
	}
	return *p
}

func (f *fixture) eventually(what string, cond func() bool) {
	f.t.Helper()
	testutil.Eventually(f.t, 5*time.Second, func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		if !cond() {
			return errWaiting(what)
		}
		return nil
	})
}

type errWaiting string

func (e errWaiting) Error() string { return "still waiting until " + string(e) }

// fakeAgent is one accepted connection. It packs and unpacks by itself, not with package zds.
type fakeAgent struct {
	t    *testing.T
	conn *net.UnixConn
}

// accept waits for ztunnel's hello.
func (f *fixture) accept() *fakeAgent {
	f.t.Helper()
	conn, err := f.agent.AcceptUnix()
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	a := &fakeAgent{f.t, conn}
	var hello zds.ZdsHello
	if a.receive(&hello); hello.GetVersion() != zds.Version_V1 {
		f.t.Fatalf("hello: got %v, want V1", &hello)
	}
	return a
}

func (a *fakeAgent) receive(m proto.Message) {
	a.t.Helper()
	b := make([]byte, 4096)
	n, err := a.conn.Read(b)
	if err == nil {
		err = proto.Unmarshal(b[:n], m)
	}
	if err != nil {
		a.t.Fatalf("no answer: %v", err)
	}
}

func (a *fakeAgent) sendRaw(b []byte, fds ...int) {
	a.t.Helper()
	if _, _, err := a.conn.WriteMsgUnix(b, unix.UnixRights(fds...), nil); err != nil {
		a.t.Fatal(err)
	}
}

func (a *fakeAgent) ask(m *zds.WorkloadRequest, fds ...int) string {
	a.t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		a.t.Fatal(err)
	}
	a.sendRaw(b, fds...)
	return a.answer()
}

func (a *fakeAgent) answer() string {
	a.t.Helper()
	var resp zds.WorkloadResponse
	if a.receive(&resp); resp.GetAck() == nil {
		a.t.Fatalf("answer is no ack: %v", &resp)
	}
	return resp.GetAck().GetError()
}

func (a *fakeAgent) add(uid string, ns *testutil.NS) string {
	a.t.Helper()
	fd := openNetns(a.t, ns)
	return a.ask(addRequest(uid), fd)
}

func (a *fakeAgent) snapshotSent() string {
	a.t.Helper()
	return a.ask(&zds.WorkloadRequest{Payload: &zds.WorkloadRequest_SnapshotSent{SnapshotSent: &zds.SnapshotSent{}}})
}

func (a *fakeAgent) keep(uid string) string {
	a.t.Helper()
	return a.ask(&zds.WorkloadRequest{Payload: &zds.WorkloadRequest_Keep{Keep: &zds.KeepWorkload{Uid: uid}}})
}

func (a *fakeAgent) del(uid string) string {
	a.t.Helper()
	return a.ask(&zds.WorkloadRequest{Payload: &zds.WorkloadRequest_Del{Del: &zds.DelWorkload{Uid: uid}}})
}

func addRequest(uid string) *zds.WorkloadRequest {
	return &zds.WorkloadRequest{Payload: &zds.WorkloadRequest_Add{Add: &zds.AddWorkload{
		Uid: uid, WorkloadInfo: &zds.WorkloadInfo{Name: "pod", Namespace: "default", ServiceAccount: "sa"},
	}}}
}

func openNetns(t *testing.T, ns *testutil.NS) int {
	t.Helper()
	file, err := os.Open(ns.Path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	return int(file.Fd())
}

func wantAck(t *testing.T, what, got string) {
	t.Helper()
	if got != "" {
		t.Fatalf("%s: got %q, want success", what, got)
	}
}
